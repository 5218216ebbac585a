"""AdamW at four rates on both shapes, and the best recipes of 2026-11-24 and of today.

Run `python -m gptjax.sweep --sweep=benchmarks/sweeps/baselines.py`. 4 x 64, 547 steps over the
slice of 0.8M tokens; the schedules of `best` end with 0.70 and 0.32 of the tokens. The results are
in benchmarks/LOG.md.
"""

import functools

from ml_collections import ConfigDict

from benchmarks.sweeps import small
from gptjax.sweep import Change, sweep

STEPS = 547


def get_config() -> ConfigDict:
    """Returns the sweep."""
    base = small.recipe(tokens=800_000, passes=2)
    base.model.n_embd, base.model.n_head = 64, 1
    small.set_steps(base, STEPS, evaluations=1)
    settings: dict[str, Change] = {}
    for rate in (4.8e-3, 9.6e-3):
        settings[f"modern-{rate:g}"] = [small.modern_adamw, {"optim.learning_rate": rate}]
    for share in (0.32, 0.70):
        shorter = functools.partial(small.set_steps, steps=int(share * STEPS), evaluations=1)
        settings[f"best-{share}"] = [shorter, small.best]
    for rate in (0.0192, 0.0384):
        settings[f"modern-{rate:g}"] = [small.modern_adamw, {"optim.learning_rate": rate}]
    settings["before"] = small.before
    for rate in (4.8e-3, 2.4e-3, 1.2e-3, 6e-4):
        settings[f"recipe-{rate:g}"] = {"optim.learning_rate": rate}
    return sweep(base=base, settings=settings, seeds=(1,))
