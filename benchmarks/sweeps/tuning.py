"""The best recipe at 4 x 128, in 0.70 of the tokens of baselines.py: a seed each, to choose by.

Run `python -m gptjax.sweep --sweep=benchmarks/sweeps/tuning.py`. 547 steps over the slice of 0.8M
tokens; the schedule ends there. The results are in benchmarks/LOG.md.
"""

from ml_collections import ConfigDict

from benchmarks.sweeps import small
from gptjax.sweep import Change, sweep


def get_config() -> ConfigDict:
    """Returns the sweep."""
    base = small.recipe(tokens=800_000, passes=2)
    small.set_steps(base, 547, evaluations=1)
    small.before(base)
    spectral = {"optim.muon_scale": "spectral", "optim.min_lr": 0.0}
    wsd = {"optim.schedule": "wsd", "optim.wsd_decay_iters": 330}
    one: dict[str, dict[str, object]] = {  # by the rates of Muon and of the table
        "0.02-0.005": {**wsd, "optim.muon_learning_rate": 0.02, "optim.learning_rate": 5e-3},
        "0.02-0.02": {"optim.muon_learning_rate": 0.02, "optim.learning_rate": 0.02},
        "0.01-0.01": {**wsd, "optim.muon_learning_rate": 0.01, "optim.learning_rate": 0.01},
        "0.005-0.01": {**wsd, "optim.muon_learning_rate": 0.005, "optim.learning_rate": 0.01},
    }
    settings: dict[str, Change] = {name: {**spectral, **change} for name, change in one.items()}
    return sweep(base=base, settings=settings, seeds=(1,))
