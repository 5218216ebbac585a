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
        "without-short-rows": [small.best, {"train.row_lengths": ()}],
        "without-later-tokens": [small.best, {"train.later_tokens": ()}],
        "without-linear-fall": [small.best, _root],
        "without-beta1": [small.best, {"optim.beta1": 0.9}],
        "without-smaller-steps": [small.best, _half_the_rows],
    }
    return sweep(base=base, settings=settings, seeds=(1,))


def _root(config: ConfigDict) -> None:
    """Takes the fall of `untied`."""
    config.optim.wsd_fall = "sqrt"
    config.optim.wsd_decay_iters = config.train.max_iters * 6 // 10


def _half_the_rows(config: ConfigDict) -> None:
    """Takes the rows and steps of `untied`, with all else at the same tokens."""
    train, optim, evaluation = config.train, config.optim, config.eval
    train.batch_size *= 2
    train.max_iters //= 2
    evaluation.eval_interval //= 2
    evaluation.eval_iters //= 2
    train.row_lengths = tuple((end // 2, length) for end, length in train.row_lengths)
    train.later_tokens_iters //= 2
    optim.warmup_iters //= 2
    optim.lr_decay_iters = train.max_iters
    optim.wsd_decay_iters //= 2
