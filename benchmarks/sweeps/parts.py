"""What each part of the best recipe gives at 4 x 128: the recipe without one of them, a seed each.

Run `gptjax sweep benchmarks/sweeps/parts.py --jobs=2`. 273 steps' worth of tokens over a slice of
0.8M; schedules end there. The results are in benchmarks/LOG.md.
"""

from ml_collections import ConfigDict

from benchmarks.sweeps import small
from gptjax.sweep import Change, sweep

STEPS = 273


def get_config() -> ConfigDict:
    """Returns the sweep."""
    base = small.recipe(tokens=800_000, passes=2)
    small.set_steps(base, STEPS, evaluations=1)
    settings: dict[str, Change] = {
        "untied": small.untied,
        "best": small.best,
        "small-steps": small.small_steps,
        "without-short-rows": [small.best, {"train.row_lengths": ()}],
        "without-later-tokens": [small.best, {"train.later_tokens": ()}],
        "without-linear-fall": [small.best, _root],
        "without-beta1": [small.best, {"optim.beta1": 0.9}],
    }
    return sweep(base=base, settings=settings, seeds=(1,))


def _root(config: ConfigDict) -> None:
    """Takes the fall of `untied`."""
    config.optim.wsd_fall = "sqrt"
    config.optim.wsd_decay_iters = config.train.max_iters * 6 // 10
