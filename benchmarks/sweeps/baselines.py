"""AdamW at four rates or more on both shapes, and the best recipe of 2026-11-24: what to beat.

Run `python -m gptjax.sweep --sweep=benchmarks/sweeps/baselines.py`. 2 passes over 0.8M tokens, 781
steps. The results are in benchmarks/LOG.md.
"""

from ml_collections import ConfigDict

from benchmarks.sweeps import small
from gptjax.sweep import Change, sweep


def get_config() -> ConfigDict:
    """Returns the sweep."""
    settings: dict[str, Change] = {"before": small.before}
    for rate in (2.4e-3, 4.8e-3, 1.2e-3, 9.6e-3):
        settings[f"modern-{rate:g}"] = [small.modern_adamw, {"optim.learning_rate": rate}]
    for rate in (6e-4, 1.2e-3, 2.4e-3, 4.8e-3):
        settings[f"recipe-{rate:g}"] = {"optim.learning_rate": rate}
    return sweep(base=small.recipe(tokens=800_000, passes=2), settings=settings, seeds=(1,))
