"""What the best recipe reaches with 0.70 and 0.32 of the tokens of others, at 4 x 128.

Run `gptjax sweep benchmarks/sweeps/equal_loss.py --jobs=2`. Each schedule ends with its run; each
seed has a slice of 0.8M tokens of its own, and most validation files, too. The results are in
benchmarks/LOG.md.
"""

import functools

from ml_collections import ConfigDict

from benchmarks.sweeps import small
from gptjax.sweep import Change, sweep

ADAMW = 1.2e-3  # the best rate of baselines.py


def get_config() -> ConfigDict:
    """Returns the sweep."""
    base = small.recipe(tokens=800_000, passes=2)
    steps = base.train.max_iters
    base.eval.eval_interval = steps

    def shorter(share: float) -> Change:
        return functools.partial(small.set_steps, steps=round(share * steps), evaluations=1)

    twice = {"optim.learning_rate": 4.8e-3, "optim.muon_learning_rate": 4.8e-3}
    settings: dict[str, Change] = {
        "before": small.before,
        "before-0.0048": [small.before, twice],
        "untied-0.70": [shorter(0.70), small.untied],
        "best-0.70": [shorter(0.70), small.best],
        "adamw": [
            small.modern_adamw,
            {"model.tie_embeddings": False, "optim.learning_rate": ADAMW},
        ],
        "untied-0.32": [shorter(0.32), small.untied],
        "best-0.32": [shorter(0.32), small.best],
    }
    slices = {seed: small.slice_of(seed - 1) for seed in (1, 2, 3)}
    return sweep(base=base, settings=settings, seeds=(1, 2, 3), per_seed=slices)
