"""Traces of some steps, which TensorBoard and Perfetto open: `gptjax.main --profile=10:13`."""

import contextlib
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from configs.errors import UserError

_log = logging.getLogger(__name__)


def parse_steps(text: str) -> range:
    """Returns the steps of `FIRST:LAST`, both included; none for "". Raises UserError."""
    if not text:
        return range(0)
    match = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", text)
    if match is None or int(match[1]) > int(match[2]):
        raise UserError(
            f"--profile={text} must be the first and the last optimizer step to trace, such as "
            f"--profile=10:13."
        )
    return range(int(match[1]), int(match[2]) + 1)


class StepTrace:
    """Traces steps into a folder, waiting before the first and after the last of them.

    Nothing else of the run changes. The folder has, for each trace, `plugins/profile/TIME/` with
    `*.xplane.pb` (TensorBoard's profiler plugin, XProf) and `perfetto_trace.json.gz`
    (ui.perfetto.dev).
    """

    def __init__(self, folder: Path, steps: range, done: int, max_iters: int):
        """Raises UserError unless the run, of whose `max_iters` steps some are done, makes them."""
        if steps and not done < steps[0] <= steps[-1] <= max_iters:
            raise UserError(
                f"--profile={steps[0]}:{steps[-1]}: of this run's {max_iters:,} steps "
                f"(train.max_iters) {done:,} are done; choose some of the others."
            )
        self._folder, self._steps, self._tracing = folder, steps, False

    @contextlib.contextmanager
    def step(self, number: int, state: Callable[[], Any]) -> Iterator[None]:
        """Traces a `with` block if it dispatches a step to trace; `state()` are its arrays."""
        if number not in self._steps:
            yield
            return
        if number == self._steps[0]:
            jax.block_until_ready(state())
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # calls of Python functions would hide the rest
            jax.profiler.start_trace(
                self._folder, create_perfetto_trace=True, profiler_options=options
            )
            self._tracing = True
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield
        if number == self._steps[-1]:
            jax.block_until_ready(state())
            self.close()

    def close(self) -> None:
        """Writes the trace if it is not written yet; safe after an error."""
        if self._tracing:
            self._tracing = False
            try:
                jax.profiler.stop_trace()
            except Exception as error:  # a full disk, or whatever the profiler meets
                _log.error("No trace was written (%s). Training continues.", error)
            else:
                _log.info("Trace written to %s.", self._folder)
