"""What weight decay and dropout give where data is read 8 and 15 times, by parameters per token.

Run `gptjax sweep benchmarks/sweeps/regularisers.py`. A slice of 0.1M tokens; models with 0.4, 1.35
and 2.9 parameters (that compute) for each. One seed. The results are in benchmarks/LOG.md.
"""

import functools

from ml_collections import ConfigDict

from benchmarks.sweeps import small
from gptjax.sweep import Change, sweep

UNIQUE = 100_000  # tokens
WIDTHS = {0.4: 24, 1.35: 48, 2.9: 72}  # by parameters per token
CHANGES: dict[str, dict[str, object]] = {
    "decay-0.1": {},
    "decay-0.4": {"optim.weight_decay": 0.4},
    "decay-1.6": {"optim.weight_decay": 1.6},
    "dropout-0.1": {"model.dropout": 0.1},
}


def get_config() -> ConfigDict:
    """Returns the sweep."""
    base = small.recipe(tokens=UNIQUE, passes=1)
    settings: dict[str, Change] = {}
    for passes in (8, 15):
        n_steps = passes * UNIQUE // small.STEP
        steps = functools.partial(small.set_steps, steps=n_steps, evaluations=4)
        for ratio, width in WIDTHS.items():
            tiny = functools.partial(small.tiny, width=width)
            for name, change in CHANGES.items():
                settings[f"{passes}x-{ratio:g}-{name}"] = [tiny, steps, small.untied, change]
    return sweep(base=base, settings=settings, seeds=(1,))
