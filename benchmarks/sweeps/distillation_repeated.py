"""Whether distillation helps where more passes do not: 0.1M tokens, 2.9 parameters for each.

Run `gptjax train benchmarks/sweeps/teacher_repeated.py`, then `gptjax sweep
benchmarks/sweeps/distillation_repeated.py`. One seed. The results are in benchmarks/LOG.md.
"""

import functools

from ml_collections import ConfigDict

from benchmarks.sweeps import small, teacher_repeated
from benchmarks.sweeps.regularisers import UNIQUE
from gptjax.sweep import Change, sweep


def get_config() -> ConfigDict:
    """Returns the sweep."""

    def run(passes: int, **train: object) -> list[Change]:
        change = functools.partial(teacher_repeated.change, passes=passes)
        return [change, {f"train.{key}": value for key, value in train.items()}]

    taught = {"teacher": teacher_repeated.get_config().workdir}
    settings: dict[str, Change] = {
        "taught-15": run(15, **taught),
        "alone-30": run(30),
        "taught-15-0.8": run(15, **taught, teacher_weight=0.8),
    }
    base = small.recipe(tokens=UNIQUE, passes=1)
    return sweep(base=base, settings=settings, seeds=(1,))
