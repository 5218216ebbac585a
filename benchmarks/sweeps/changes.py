"""Which rate AdamW's share takes beside Muon, at 4 x 64: a seed each.

Run `python -m gptjax.sweep --sweep=benchmarks/sweeps/changes.py`. 547 steps over the slice of
0.8M tokens; the schedule ends there. The results are in benchmarks/LOG.md; what else was tried
needs the sources that it names.
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
    base.optim.muon_scale, base.optim.muon_learning_rate = "spectral", 0.02
    base.optim.min_lr = 0.0
    settings: dict[str, Change] = {
        f"table-{name}": {"optim.learning_rate": float(name)}
        for name in ("2.4e-3", "9.6e-3", "0.02", "0.04")
    }
    return sweep(base=base, settings=settings, seeds=(1,))
