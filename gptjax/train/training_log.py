"""What a run reports about its steps: metrics, console lines, speed, time left, skipped steps."""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from configs.errors import UserError
from data_pipeline.packing import Rows
from data_pipeline.progress import ProgressBar, format_seconds
from gptjax.checkpoint import RunProgress
from gptjax.common.workdir import START
from gptjax.metrics import Clock, MetricsWriter, Window
from gptjax.model import GPTConfig, flops_per_token
from gptjax.plan.devices import peak_flops
from gptjax.step import TrainState
from gptjax.train.callbacks import PeriodicCallback

_log = logging.getLogger(__name__)

_SHOWN = 20  # documents of a skipped step on the console; metrics.jsonl has all


class DispatchedStep(NamedTuple):
    """An optimizer step whose metrics have not been read yet."""

    step: int
    first_row: int  # of its batch, in the sequence of packed rows
    metrics: Any  # on the device


class TrainingLog:
    """Reads the metrics of steps and reports them; several processes call it, process 0 reports."""

    def __init__(
        self,
        config: ConfigDict,
        model_config: GPTConfig,
        teacher: GPTConfig | None,
        rows: Rows,
        state: TrainState,
        progress: RunProgress,
    ):
        step = int(state.step)
        self._train = config.train
        self._model_config, self._teacher = model_config, teacher
        self._rows = rows
        self._tokens_seen = progress.tokens_seen
        self.clock = Clock(progress.trained_seconds)
        peak = peak_flops(jax.devices()[0])
        self.window = Window(
            self.clock,
            flops_per_token=flops_per_token(model_config, teacher),
            peak_flops=None if peak is None else peak * jax.device_count(),
            state=progress.window,
        )
        self._seconds_per_step: float | None = None  # in the last window
        self._callback_seconds: dict[PeriodicCallback, float] = {}  # of the last run of each
        self.writer = MetricsWriter(Path(config.workdir), config, step)
        self.skipped = SkippedSteps(config.train, rows, self.writer, state.opt_state)
        self._is_shown = jax.process_index() == 0
        n_steps = self._train.max_iters
        self._bar = ProgressBar("training", n_steps, step, shown=self._is_shown, keep=True)
        if step < n_steps:
            self.writer.write(step, {START: step})

    def set_row_length(self, length: int) -> None:
        """Counts the FLOPs of the next steps for rows of `length` tokens."""
        shape = dataclasses.replace(self._model_config, block_size=length)
        self.window.flops_per_token = flops_per_token(shape, self._teacher)

    @contextlib.contextmanager
    def running(self, callback: PeriodicCallback) -> Iterator[None]:
        """Measures a run of `callback`, for the time left."""
        start = time.monotonic()
        yield
        self._callback_seconds[callback] = time.monotonic() - start

    def add(self, dispatched: DispatchedStep, *, timed: bool = True) -> None:
        """Waits for the metrics of a step and reports them; `timed`: see `Window.add`.

        Raises UserError if too many steps in a row were skipped.
        """
        step = dispatched.step
        metrics = jax.device_get(dispatched.metrics)
        nats_A = metrics.pop("nats_A")
        values = {name: float(value) for name, value in metrics.items()}
        skipped = self.skipped.check(step, dispatched.first_row, values, nats_A)
        self._tokens_seen += int(values["n_targets"])
        self.window.add(values, skipped=skipped, timed=timed)
        loss = values["nats"] / values["n_targets"]
        self._bar.update(step, f"{step}/{self._train.max_iters} steps, loss {loss:.3f}")
        if step % self._train.log_interval == 0:
            self._write_window(step)

    def _write_window(self, step: int) -> None:
        rows_seen = step * self._train.batch_size * self._train.gradient_accumulation_steps
        epochs = self._rows.epochs(rows_seen)
        values = {
            **self.window.scalars(),
            "optim/skipped_steps": self.skipped.total,
            "data/tokens_seen": self._tokens_seen,
            "data/epoch": max(epochs.values()),
            **{f"data/{source}/epoch": value for source, value in epochs.items() if source},
        }
        self._seconds_per_step = self.window.seconds_per_step
        self.writer.write(step, values)
        self._print(step, training_line(values, self._seconds_left(step)))
        self.window.restart()

    def _seconds_left(self, step: int) -> float | None:
        """Returns the time left at the current speed; callbacks take as long as the last time."""
        if self._seconds_per_step is None:
            return None
        steps_left = self._train.max_iters - step
        callback_seconds = sum(
            seconds * (steps_left / callback.interval if callback.interval else 1)
            for callback, seconds in self._callback_seconds.items()
        )
        return steps_left * self._seconds_per_step + callback_seconds

    def add_validation(
        self, step: int, values: Mapping[str, float], *, is_best: bool, seconds: float
    ) -> None:
        """Reports the metrics of an evaluation that took `seconds`."""
        self.writer.write(step, {f"val/{name}": value for name, value in values.items()})
        losses = (
            f"{name.removesuffix('/loss')} {value:.4f}"
            for name, value in values.items()
            if name.endswith("/loss")
        )
        by_source = f" ({text})" if (text := ", ".join(losses)) else ""
        self._print(
            step,
            f"val loss {values['loss']:.4f}{by_source} | bits/byte {values['bits_per_byte']:.4f}"
            f"{' | best so far' if is_best else ''} | {format_seconds(seconds)}",
        )

    def _print(self, step: int, text: str) -> None:
        if self._is_shown:
            n_steps = self._train.max_iters
            _log.info("step %*d/%d | %s", len(str(n_steps)), step, n_steps, text)

    def stop_notice(self, save_seconds: float | None) -> str:
        """Returns what happens after a stop request, and how long it takes."""
        if self._seconds_per_step is None or save_seconds is None:
            return "stopping after this step, with a checkpoint; neither has been timed yet."
        seconds = format_seconds(2 * self._seconds_per_step + save_seconds + 1)
        return f"stopping after this step, with a checkpoint: within about {seconds}."

    @property
    def progress(self) -> dict[str, Any]:
        """The fields of a checkpoint's `RunProgress` that are kept here."""
        return {
            "tokens_seen": self._tokens_seen,
            "trained_seconds": self.clock.seconds,
            "window": self.window.state,
        }

    def close(self) -> None:
        """Closes the console's bar and the metrics files; safe after an error."""
        self._bar.close()
        self.writer.close()


class SkippedSteps:
    """The skipped steps of a run, over all restarts; too many in a row end it."""

    def __init__(self, train: ConfigDict, rows: Rows, writer: MetricsWriter, opt_state: Any):
        self.total = int(optax.tree.get(opt_state, "skipped"))
        self.in_a_row = int(optax.tree.get(opt_state, "in_a_row"))
        self._train = train
        self._rows = rows
        self._writer = writer

    def check(
        self, step: int, first_row: int, values: dict[str, float], nats_A: np.ndarray
    ) -> bool:
        """Returns whether `step` was skipped, after reporting it.

        `first_row` is the first packed row of its batch, `values` are its metrics, and `nats_A` is
        the summed loss of each micro-step. Raises UserError if the step is the last of
        `train.max_consecutive_skips` in a row.
        """
        skipped = int(values["skipped"]) > self.total
        self.total, self.in_a_row = int(values["skipped"]), int(values["skipped_in_a_row"])
        if not skipped:
            return False
        loss, grad_norm = values["nats"] / values["n_targets"], values["grad_norm"]
        size = self._train.batch_size
        # The micro-steps without a finite loss, or else all of the batch.
        micro_steps = np.flatnonzero(~np.isfinite(nats_A)).tolist() or list(range(nats_A.size))
        documents = self._rows.document_ids(
            first_row + micro_step * size + row for micro_step in micro_steps for row in range(size)
        )
        _log.warning(
            "Step %d was skipped: loss %g, gradient norm %g; %d in all. Documents: %s%s",
            step,
            loss,
            grad_norm,
            self.total,
            ", ".join(documents[:_SHOWN]),
            f", ... {len(documents)} in all" if documents[_SHOWN:] else "",
        )
        self._writer.write(
            step,
            {
                "skipped/loss": loss,
                "skipped/grad_norm": grad_norm,
                "skipped/micro_steps": micro_steps,
                "skipped/documents": documents,
            },
        )
        if self.in_a_row >= self._train.max_consecutive_skips:
            raise UserError(
                f"step {step} is number {self.in_a_row} in a row that had to be skipped "
                f"(train.max_consecutive_skips): loss {loss:g}, gradient norm {grad_norm:g}. "
                f"This state was not saved, and training again from the last checkpoint fails in "
                f"the same way: start in another workdir with a lower "
                f"--config.optim.learning_rate or a longer --config.optim.warmup_iters; if these "
                f"are only spikes, continue with a higher --config.train.loss_spike_sigma. The "
                f"documents are in metrics.jsonl (skipped/documents)."
            )
        return True


def training_line(values: Mapping[str, float | None], seconds_left: float | None) -> str:
    """Returns the console's line for the metrics of a window; n/a: unknown."""

    def shown(name: str, form: str) -> str:
        value = values[name]
        return "n/a" if value is None else format(value, form)

    parts = [
        f"train loss {shown('train/loss', '.4f')}",
        f"bits/byte {shown('train/bits_per_byte', '.4f')}",
        f"lr {shown('optim/learning_rate', '.2e')}",
        f"grad norm {shown('optim/grad_norm', '.2f')}",
        f"{shown('perf/tokens_per_sec', ',.0f')} tok/s",
        f"mfu {shown('perf/mfu', '.1%')}",
        f"epoch {shown('data/epoch', '.2f')}",
        f"eta {'n/a' if seconds_left is None else format_seconds(seconds_left)}",
    ]
    if values["optim/skipped_steps"]:
        parts.append(f"skipped {shown('optim/skipped_steps', 'd')}")
    return " | ".join(parts)
