"""Whether a recipe's rate, and its gain over `before`, hold from 4 x 64 to 4 x 256: a seed each.

Run `gptjax sweep benchmarks/sweeps/widths.py --jobs=2`. 547 steps over a slice of 0.8M tokens;
schedules end there. The results are in benchmarks/LOG.md.
"""

import functools

from ml_collections import ConfigDict

from benchmarks.sweeps import small
from gptjax.sweep import Change, sweep

STEPS = 547
RATES = (0.003, 0.006, 0.012)  # of Muon, in spectral norm, of `untied`
BEFORE = {64: (2.4e-3, 4.8e-3, 9.6e-3), 128: (2.4e-3, 4.8e-3, 9.6e-3), 256: (2.4e-3, 4.8e-3)}


def get_config() -> ConfigDict:
    """Returns the sweep."""
    base = small.recipe(tokens=800_000, passes=2)
    small.set_steps(base, STEPS, evaluations=1)
    settings: dict[str, Change] = {}
    for width in (64, 128, 256):
        size = {"model.n_embd": width, "model.n_head": width // 64}
        for rate in BEFORE[width]:
            both = {"optim.learning_rate": rate, "optim.muon_learning_rate": rate}
            settings[f"{width}-before-{rate:g}"] = [size, small.before, both]
        for rate in RATES:
            untied = functools.partial(small.untied, muon=rate)
            settings[f"{width}-{rate:g}"] = [size, untied]
        settings[f"{width}-best-0.006"] = [size, functools.partial(small.best, muon=0.006)]
    return sweep(base=base, settings=settings, seeds=(1,))
