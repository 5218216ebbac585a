"""What Muon gives, apart from the warm-up and the rate that come with it: one pass, three seeds.

Run `python -m gptjax.sweep --sweep=benchmarks/sweeps/muon_apart.py --jobs=2`. Each setting is the
one before it and one change more. The results are in benchmarks/LOG.md.
"""

from ml_collections import ConfigDict

from benchmarks.sweeps import small
from gptjax.sweep import Change, sweep


def get_config() -> ConfigDict:
    """Returns the sweep."""
    warmup: Change = {"optim.warmup_iters": 24}
    rate: Change = {"optim.learning_rate": small.BEST_RATE}
    muon: Change = {"optim.optimizer": "muon", "optim.muon_learning_rate": small.BEST_RATE}
    settings: dict[str, Change] = {
        "recipe": {},
        "warmup": warmup,
        "rate": [warmup, rate],
        "muon": [warmup, rate, muon],
    }
    return sweep(base=small.recipe(tokens=1_000_000), settings=settings, seeds=(1, 2, 3))
