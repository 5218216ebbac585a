"""What the best recipe reaches with a share of the tokens; each schedule ends with its run.

Run `python -m gptjax.sweep --sweep=benchmarks/sweeps/equal_loss.py`. 4 x 128, a slice of 0.8M
tokens, one seed. The results are in benchmarks/LOG.md.
"""

from ml_collections import ConfigDict

from benchmarks.sweeps import small
from gptjax.sweep import Change, sweep


def get_config() -> ConfigDict:
    """Returns the sweep."""
    settings: dict[str, Change] = {
        "before": small.before,
        "best-781": small.best,
        "best-250": [lambda config: small.set_steps(config, 250), small.best],
        "adamw-2.4e-3": [small.modern_adamw, {"optim.learning_rate": 2.4e-3}],
        "before-547": [lambda config: small.set_steps(config, 547), small.before],
    }
    return sweep(base=small.recipe(tokens=800_000, passes=2), settings=settings, seeds=(1,))
