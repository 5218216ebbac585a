"""What weight decay and dropout give where data is read 8 and 15 times, by parameters per token.

Run `gptjax sweep benchmarks/sweeps/regularisers.py`. A slice of 0.1M tokens; models with 0.37, 1.4
and 3 parameters (that compute) for each. One seed. The results are in benchmarks/LOG.md.
"""

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
    base.tokenizer.vocab_size = 512
    settings: dict[str, Change] = {}
    for passes in (8, 15):
        for ratio, width in WIDTHS.items():
            for name, change in CHANGES.items():

                def size(config: ConfigDict, passes: int = passes, width: int = width) -> None:
                    config.model.n_embd, config.model.n_head = width, width // 16
                    small.set_steps(config, passes * UNIQUE // small.STEP, evaluations=4)

                settings[f"{passes}x-{ratio:g}-{name}"] = [size, small.best, change]
    return sweep(base=base, settings=settings, seeds=(1,))
