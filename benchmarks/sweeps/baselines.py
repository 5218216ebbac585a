"""AdamW at four rates on the shapes of the recipe and of the best one, at 4 x 128.

Run `gptjax sweep benchmarks/sweeps/baselines.py --jobs=2`. 391 steps over a slice of 0.8M tokens,
half of those of equal_loss.py; schedules end there. One seed. The results are in benchmarks/LOG.md.
"""

from ml_collections import ConfigDict

from benchmarks.sweeps import small
from gptjax.sweep import Change, sweep

STEPS = 391


def get_config() -> ConfigDict:
    """Returns the sweep."""
    base = small.recipe(tokens=800_000, passes=2)
    small.set_steps(base, STEPS, evaluations=1)
    settings: dict[str, Change] = {}
    for rate in (1.2e-3, 2.4e-3, 4.8e-3, 9.6e-3, 0.0192, 6e-4):
        untied = {"model.tie_embeddings": False, "optim.learning_rate": rate}
        settings[f"modern-{rate:g}"] = [small.modern_adamw, untied]
    for rate in (2.4e-3, 4.8e-3):
        settings[f"tied-{rate:g}"] = [small.modern_adamw, {"optim.learning_rate": rate}]
    for rate in (2.4e-3, 1.2e-3, 4.8e-3, 9.6e-3):
        settings[f"recipe-{rate:g}"] = {"optim.learning_rate": rate}
    return sweep(base=base, settings=settings, seeds=(1,))
