"""The flags of commands that draw text."""

import dataclasses
from typing import Any

from absl import flags

from configs.errors import UserError
from gptjax.inference.sampler import Sampling


def define(*, temperature: float, top_k: int) -> None:
    """Defines those whose meaning is the same everywhere, with these defaults."""
    flags.DEFINE_float(
        "temperature", temperature, "0: the most likely token each time.", lower_bound=0
    )
    flags.DEFINE_integer(
        "top_k", top_k, "Draw from the k most likely tokens; 0: all.", lower_bound=0
    )
    flags.DEFINE_float("top_p", 1.0, "Draw from the smallest set with this probability.")


def sampling_of(values: Any) -> Sampling:
    """Returns what they say, and --max_new_tokens; UserError: --top_p is out of range."""
    if not 0 < values.top_p <= 1:
        raise UserError(f"--top_p={values.top_p} must be in (0, 1].")
    return Sampling(**{f.name: getattr(values, f.name) for f in dataclasses.fields(Sampling)})
