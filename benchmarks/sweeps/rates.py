"""Which learning rates the contenders of one_pass.py take: a seed each, to choose by.

Run `python -m gptjax.sweep --sweep=benchmarks/sweeps/rates.py`.
"""

from ml_collections import ConfigDict

from benchmarks.sweeps import small
from configs import modern
from gptjax.sweep import Change, sweep

TOKENS = 1_000_000


def get_config() -> ConfigDict:
    """Returns the sweep."""
    settings: dict[str, Change] = {"recipe-0.0006": {}}
    for rate in (1.2e-3, 2.4e-3):
        settings[f"recipe-{rate:g}"] = {"optim.learning_rate": rate}
    for rate in (1.2e-3, 2.4e-3, 4.8e-3):
        settings[f"modern-{rate:g}"] = [
            modern.apply,
            {"optim.learning_rate": rate, "optim.warmup_iters": 24},
        ]
    for rate in (2.4e-3, 4.8e-3):
        settings[f"muon-{rate:g}"] = [
            modern.apply,
            {
                "optim.optimizer": "muon",
                "optim.muon_learning_rate": rate,
                "optim.learning_rate": 2.4e-3,
                "optim.warmup_iters": 24,
            },
        ]
    return sweep(base=small.recipe(tokens=TOKENS), settings=settings, seeds=(1,))
