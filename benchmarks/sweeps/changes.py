"""Changes of the best recipe, one at a time, in 0.70 of the tokens of baselines.py: a seed each.

Run `python -m gptjax.sweep --sweep=benchmarks/sweeps/changes.py`. 4 x 64, 547 steps over the slice
of 0.8M tokens; the schedule ends there. The results are in benchmarks/LOG.md.
"""

from ml_collections import ConfigDict

from benchmarks.sweeps import small
from gptjax.sweep import Change, sweep


def get_config() -> ConfigDict:
    """Returns the sweep."""
    base = small.recipe(tokens=800_000, passes=2)
    base.model.n_embd, base.model.n_head = 64, 1
    small.set_steps(base, 547, evaluations=1)
    small.before(base)
    spectral = {
        "optim.muon_scale": "spectral",
        "optim.min_lr": 0.0,
        "optim.muon_learning_rate": 0.02,
    }
    one: dict[str, dict[str, object]] = {
        "table-2.4e-3": {},
        "table-9.6e-3": {"optim.learning_rate": 9.6e-3},
        "table-0.02": {"optim.learning_rate": 0.02},
        "table-0.04": {"optim.learning_rate": 0.04},
        "normuon": {"optim.learning_rate": 0.02, "optim.muon_beta2": 0.95},
        "muon-0.01": {"optim.learning_rate": 0.02, "optim.muon_learning_rate": 0.01},
        "wsd": {
            "optim.learning_rate": 0.02,
            "optim.schedule": "wsd",
            "optim.wsd_decay_iters": 330,
        },
        "cautious": {"optim.learning_rate": 0.02, "optim.cautious_decay": True},
        "untied": {
            "model.tie_embeddings": False,
            "optim.learning_rate": 0.04,
            "optim.head_learning_rate": 0.01,
        },
        "polar": {"optim.learning_rate": 0.02, "optim.muon_coefficients": "polar_express"},
    }
    settings: dict[str, Change] = {name: {**spectral, **change} for name, change in one.items()}
    return sweep(base=base, settings=settings, seeds=(1,))
