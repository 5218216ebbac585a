"""Whether a second run learns more from the first one's predictions than from more passes.

Run `gptjax train benchmarks/sweeps/teacher.py`, then `gptjax sweep
benchmarks/sweeps/distillation.py`. 4 x 128, a slice of 0.8M tokens, one seed; schedules end with
their runs. The results are in benchmarks/LOG.md.
"""

import functools

from ml_collections import ConfigDict

from benchmarks.sweeps import small, teacher
from gptjax.sweep import Change, sweep


def get_config() -> ConfigDict:
    """Returns the sweep."""
    base = small.recipe(tokens=800_000, passes=2)
    steps = base.train.max_iters

    def best(share: float, **train: object) -> list[Change]:
        run = functools.partial(small.set_steps, steps=round(share * steps), evaluations=1)
        return [run, small.best, {f"train.{key}": value for key, value in train.items()}]

    taught = {"teacher": teacher.get_config().workdir}
    settings: dict[str, Change] = {
        "taught-0.70": best(0.70, **taught),
        "taught-0.35": best(0.35, **taught),
        "alone-1.40": best(1.40),
        "taught-0.70-0.8": best(0.70, **taught, teacher_weight=0.8),
    }
    return sweep(base=base, settings=settings, seeds=(1,))
