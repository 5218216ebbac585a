"""How a sweep is declared: three settings of a small model, two seeds; a minute on two cores.

Run `python -m gptjax.sweep --sweep=benchmarks/sweeps/example.py`.
"""

from ml_collections import ConfigDict

from configs import debug
from gptjax.sweep import sweep


def get_config() -> ConfigDict:
    """Returns the sweep."""
    return sweep(
        base=debug.get_config(),
        common={"train.max_iters": 40, "optim.lr_decay_iters": 40},
        settings={
            "recipe": {},  # the first is the reference
            "slower": {"optim.learning_rate": 3e-3},
            "shorter": {"data.max_train_tokens": 20_000},
        },
        seeds=(1, 2),
    )
