"""The teacher of distillation_repeated.py: 15 passes over 0.1M tokens, 2.9 parameters for each.

Run `gptjax train benchmarks/sweeps/teacher_repeated.py`.
"""

from ml_collections import ConfigDict

from benchmarks.sweeps import small
from benchmarks.sweeps.regularisers import UNIQUE, WIDTHS

PASSES = 15


def get_config() -> ConfigDict:
    """Returns the recipe: that of regularisers.py with the strongest decay."""
    config = small.recipe(tokens=UNIQUE, passes=1)
    change(config, passes=PASSES)
    config.seed, config.workdir = 1, "runs/teacher_repeated"
    config.sample.prompts = ()
    config.train.max_epochs = PASSES
    return config


def change(config: ConfigDict, *, passes: int) -> None:
    """Changes the recipe to that of the teacher, with `passes` over the data."""
    small.tiny(config, width=WIDTHS[2.9])
    small.set_steps(config, passes * UNIQUE // small.STEP, evaluations=4)
    small.untied(config)
    config.optim.weight_decay = 1.6
