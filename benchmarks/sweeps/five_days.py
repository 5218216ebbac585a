"""Which size of model for five days of one card: equal compute, three scales of unique tokens.

Run `gptjax sweep benchmarks/sweeps/five_days.py`. The card reads its 0.73e9 tokens 34 times with
0.075 parameters (that compute: without the table) for each of them, 8.6 times with 0.32. Here are
models of these ratios on slices of 0.25M, 0.5M and 1M tokens, with the recipe `untied`. One seed.
The results are in benchmarks/LOG.md.
"""

import functools

from ml_collections import ConfigDict

from benchmarks.sweeps import small
from gptjax.model import GPTConfig, count_params
from gptjax.sweep import Change, sweep

COMPUTE = 0.32 * 8.6  # x unique tokens^2: tokens x parameters that compute
WIDTHS = {250_000: (16, 24, 32, 48, 72), 500_000: (24, 32, 48, 72, 96), 1_000_000: (32, 48, 72, 96)}
RATES = (0.003, 0.006, 0.012)  # of Muon, for the smallest slice; the second one for the others


def get_config() -> ConfigDict:
    """Returns the sweep."""
    base = small.recipe(tokens=250_000, passes=1)
    settings: dict[str, Change] = {}
    for unique, widths in WIDTHS.items():
        for width in widths:
            for rate in RATES if unique == min(WIDTHS) else RATES[1:2]:
                size = functools.partial(_size, unique=unique, width=width)
                untied = functools.partial(small.untied, muon=rate)
                settings[f"{unique / 1e6:g}M-{width}-{rate:g}"] = [size, untied]
    return sweep(base=base, settings=settings, seeds=(1,))


def _size(config: ConfigDict, *, unique: int, width: int) -> None:
    """Sets the slice, the width, and as many steps as the compute allows."""
    config.data.max_train_tokens = unique
    small.tiny(config, width=width)
    vocab_size = config.tokenizer.vocab_size
    n_params, _ = count_params(GPTConfig.from_config(config, vocab_size))  # the head tied
    small.set_steps(config, round(COMPUTE * unique**2 / n_params / small.STEP), evaluations=8)
