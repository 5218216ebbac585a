"""The teacher of distillation.py: the best recipe at 4 x 128 with 0.70 of the tokens, seed 1.

Run `gptjax train benchmarks/sweeps/teacher.py`.
"""

from ml_collections import ConfigDict

from benchmarks.sweeps import small

SHARE = 0.70  # of two passes over 0.8M tokens


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = small.recipe(tokens=800_000, passes=2)
    small.set_steps(config, round(SHARE * config.train.max_iters), evaluations=1)
    small.best(config)
    config.seed, config.workdir = 1, "runs/teacher"
    config.sample.prompts = ()
    return config
