"""The user's recipe and the best one of 2026-11-24, over and over the same tokens: equal size.

Run `python -m gptjax.sweep --sweep=benchmarks/sweeps/many_passes.py --jobs=2`. The data is a slice
with 2.6 to 2.7 tokens a parameter, as the shard's 0.73e9 are to 275M. The results are in
benchmarks/LOG.md.
"""

from ml_collections import ConfigDict

from benchmarks.sweeps import small
from gptjax.sweep import Change, sweep


def get_config() -> ConfigDict:
    """Returns the sweep."""
    base = small.recipe(tokens=2_900_000, passes=4)
    settings: dict[str, Change] = {"recipe": {}, "before": small.before}
    return sweep(base=base, settings=settings, seeds=(1, 2, 3))
