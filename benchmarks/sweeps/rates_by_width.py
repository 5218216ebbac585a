"""Whether the best recipe's rate of Muon is one for all widths, from 4 x 64 to 4 x 512: a seed.

Run `gptjax sweep benchmarks/sweeps/rates_by_width.py --jobs=2`. 137 steps of 2,048 tokens over a
slice of 0.8M, 0.35 passes; schedules end there. The results are in benchmarks/LOG.md.
"""

import functools

from ml_collections import ConfigDict

from benchmarks.sweeps import small
from gptjax.sweep import Change, sweep

STEPS = 137
RATES = (0.004, 0.008, 0.0113, 0.016, 0.032)  # of Muon, in spectral norm


def get_config() -> ConfigDict:
    """Returns the sweep."""
    base = small.recipe(tokens=800_000, passes=2)
    small.set_steps(base, STEPS, evaluations=1)
    settings: dict[str, Change] = {}
    for width in (64, 128, 256, 512):
        size = {"model.n_embd": width, "model.n_head": width // 64}
        for rate in RATES:
            settings[f"{width}-{rate:g}"] = [size, functools.partial(small.best, muon=rate)]
    return sweep(base=base, settings=settings, seeds=(1,))
