"""What the best recipe reaches in 0.70 and 0.32 of the tokens; other slices than tuning.py's.

Run `python -m gptjax.sweep --sweep=benchmarks/sweeps/equal_loss.py --jobs=2`. Each schedule ends
with its run; each seed has another slice of 0.8M tokens, and other validation files. The results
are in benchmarks/LOG.md.
"""

from ml_collections import ConfigDict

from benchmarks.sweeps import small
from gptjax.sweep import Change, sweep

TOKENS = 800_000


def get_config() -> ConfigDict:
    """Returns the sweep."""
    base = small.recipe(tokens=TOKENS, passes=2)
    small.set_steps(base, 781, evaluations=1)
    settings: dict[str, Change] = {
        "before": small.before,
        "best-547": [lambda config: small.set_steps(config, 547, evaluations=1), small.best],
        "adamw": [small.modern_adamw, {"optim.learning_rate": 2.4e-3}],
        "best-250": [lambda config: small.set_steps(config, 250, evaluations=1), small.best],
    }
    per_seed: dict[int, Change] = {seed: small.slice_of(seed) for seed in (1, 2, 3)}
    return sweep(base=base, settings=settings, seeds=(1, 2, 3), per_seed=per_seed)
