"""How long a run will take on a CPU, said before its first step."""

import logging
from typing import Any

import jax
from ml_collections import ConfigDict

from data_pipeline.progress import format_seconds
from gptjax.model import flops_per_token
from gptjax.step import teacher_model
from gptjax.train.validation import Validation

_log = logging.getLogger(__name__)

_LONG_STEP = 1e12  # FLOPs: many seconds on a CPU


def announce_duration(
    config: ConfigDict, validation: Validation, params: Any, steps_done: int
) -> None:
    """Logs what a long step and the run will take; of a micro-step, the forward pass is timed."""
    train = config.train
    n_micro, n_steps = train.gradient_accumulation_steps, train.max_iters - steps_done
    tokens = n_micro * train.batch_size * config.model.block_size
    if (
        jax.default_backend() != "cpu"
        or tokens * flops_per_token(validation.model_config) <= _LONG_STEP
    ):
        return
    forward = validation.seconds_per_batch(params)
    teacher = teacher_model(config, validation.model_config.vocab_size)
    flops = flops_per_token(validation.model_config)
    of_a_micro_step = 3 * flops_per_token(validation.model_config, teacher) / flops
    seconds = n_micro * of_a_micro_step * forward
    _log.info(
        "On this CPU a step will take about %s, and the %s left %s: a step has %d micro-steps, "
        "and the forward pass of one, 1/%.3g of it, took %.2f s.",
        *(format_seconds(seconds), f"{n_steps:,}", format_seconds(n_steps * seconds)),
        *(n_micro, of_a_micro_step, forward),
    )
