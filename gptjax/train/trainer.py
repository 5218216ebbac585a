"""The run: build, restore, loop. The loop orchestrates, the step computes, hooks decide."""

import logging
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from configs.errors import UserError
from configs.validate import validate
from data_pipeline.files import write_atomically
from data_pipeline.loader import BatchIterator
from data_pipeline.packing import PackedRows
from data_pipeline.prepare import prepare
from data_pipeline.subset import training_documents
from data_pipeline.token_store import TOKENIZER, TokenStore
from gptjax.checkpoint.background_saver import Saver
from gptjax.checkpoint.manager import Checkpoints, Progress
from gptjax.common.formatting import format_seconds
from gptjax.common.signals import StopSignal
from gptjax.common.workdir import save_config
from gptjax.metrics.console import Console, training_line
from gptjax.metrics.throughput import Clock, Window
from gptjax.metrics.writers import START, MetricsWriter
from gptjax.model import attention
from gptjax.model.config import GPTConfig
from gptjax.model.flops import flops_per_token
from gptjax.plan.check import refuse_unfit, short_form
from gptjax.plan.devices import peak_flops
from gptjax.step.sharding import make_mesh, place_batch
from gptjax.step.train_state import TrainState
from gptjax.step.train_step import StepFunctions
from gptjax.train import callbacks
from gptjax.train.callbacks import PeriodicCallback
from gptjax.train.data_check import validate_store
from gptjax.train.init_state import initial_state
from gptjax.train.skipped_steps import SkippedSteps
from gptjax.train.validation import Validation

_log = logging.getLogger(__name__)


def train_and_evaluate(config: ConfigDict) -> TrainState:
    """Prepares the data and trains on to `train.max_iters` from where the workdir stands.

    Args:
        config: see configs/base.py.

    Returns:
        The last state.

    Raises:
        UserError: for a configuration, data or workdir that cannot work; nothing is changed then.
            Or later, if too many steps in a row had to be skipped, or the last state could not be
            saved.
    """
    validate(config, jax.device_count(), callbacks.problems(config))
    run_plan = refuse_unfit(config)
    store = TokenStore.open(prepare(config))
    validate_store(config, store)
    workdir = Path(config.workdir)
    model_config = GPTConfig.from_config(config, store.tokenizer.vocab_size)
    _log.info("%s", short_form(run_plan, store))
    _log.info("Attention: %s (%s).", *attention.choose(config))

    mesh = make_mesh(config.mesh.fsdp)
    steps = StepFunctions(config, model_config, store.tokenizer.token_bytes, mesh)
    checkpoints = Checkpoints(workdir, config, store)
    try:
        restored = checkpoints.restore(steps)
        state, progress = restored or (initial_state(config, steps, store), Progress())
        try:
            _write_description(config, store)  # only now: a run that is refused changes nothing
        except OSError as error:
            raise UserError(
                f"{workdir} cannot be written ({error.strerror}): free some space, or give the run "
                f"another folder (--config.workdir=...)."
            ) from error
        run = Trainer(config, store, steps, checkpoints, state, progress)
        try:
            run.loop()
        finally:
            run.close()
    finally:
        checkpoints.close()
    return run.state


def _write_description(config: ConfigDict, store: TokenStore) -> None:
    """Writes config.json and the tokenizer, without which checkpoints are of little use."""
    if jax.process_index() > 0:
        return
    workdir = Path(config.workdir)
    save_config(config, workdir)
    write_atomically(workdir / TOKENIZER, (store.path / TOKENIZER).read_bytes())


class PendingStep(NamedTuple):
    """A step that was dispatched, and whose metrics have not been read."""

    step: int
    first_row: int  # of its batch, in the sequence of rows
    metrics: Any  # on the device
    timed: bool = True  # False: the clock stood still


class Trainer:
    """One process's share of a run: from the step it starts at to the step it stops at."""

    def __init__(
        self,
        config: ConfigDict,
        store: TokenStore,
        steps: StepFunctions,
        checkpoints: Checkpoints,
        state: TrainState,
        progress: Progress,
    ):
        """Puts the parts together; reads the validation rows and starts reading ahead."""
        self.state = state
        self.step = int(state.step)
        self._config = config
        self._steps = steps
        self._saver = Saver(checkpoints, self._prepare_to_save)
        self._validation = Validation(config, store, steps)
        self._store = store
        self._rows = PackedRows(
            training_documents(store, config.data.max_train_tokens),
            block_size=config.model.block_size,
            seed=config.seed,
            bos_id=store.tokenizer.bos_id,
            segments=config.data.document_mask,
        )
        self._batches = BatchIterator(
            self._rows,
            batch_size=config.train.batch_size,
            micro_steps=config.train.gradient_accumulation_steps,
            state=progress.data_state,
            host=jax.process_index(),
            n_hosts=jax.process_count(),
            prefetch=config.data.prefetch_batches,
            place=lambda batch: place_batch(steps.batch_sharding, batch),
        )
        self._tokens_seen = progress.tokens_seen
        self._best_val_loss = progress.best_val_loss
        self._clock = Clock(progress.trained_seconds)
        peak = peak_flops(jax.devices()[0].device_kind)
        self._window = Window(
            self._clock,
            flops_per_token=flops_per_token(steps.model_config),
            peak_flops=None if peak is None else peak * jax.device_count(),
            state=progress.window,
        )
        self._seconds_per_step: float | None = None
        self._hook_seconds: dict[PeriodicCallback, float] = {}  # of the last time that each was due
        self._writer = MetricsWriter(Path(config.workdir), config, self.step)
        self.hooks = [
            *callbacks.measurements(config, steps.model_config, store.tokenizer, self._writer),
            PeriodicCallback(config.eval.eval_interval, self._evaluate_and_save),
            *callbacks.reports(config),
        ]
        self._skipped = SkippedSteps(config, self._rows, self._writer, state.opt_state)
        self._console = Console(config.train.max_iters, self.step)
        if self.step < config.train.max_iters:
            self._writer.write(self.step, {START: self.step})

    def loop(self) -> None:
        """Trains until `train.max_iters`, `train.max_hours` or a signal; saves the last state.

        Raises:
            UserError: after `train.max_consecutive_skips` skipped steps in a row; nothing is saved
                then. Or if the last state cannot be saved.
        """
        train = self._config.train
        if self.step >= train.max_iters:
            _log.info("Nothing left to train: %d of %d steps are done.", self.step, train.max_iters)
            self._between_steps([hook for hook in self.hooks if hook.again])
            return
        stop_time = None if train.max_hours is None else time.monotonic() + 3600 * train.max_hours
        with StopSignal(self._announce_stop) as stop:
            pending: PendingStep | None = self._first_step()
            while True:
                at_end = self.step >= train.max_iters
                due = [hook for hook in self.hooks if hook.due(self.step, at_end=at_end)]
                if due or self._saver.due():
                    self._read(pending)
                    pending = None
                    self._between_steps(due)
                if at_end or stop.received:
                    break
                if stop_time is not None and time.monotonic() > stop_time:
                    _log.info("max_hours = %g are over: %s", train.max_hours, self._announce_stop())
                    break
                dispatched = self._dispatch()
                self._read(pending)  # the device works on the next step meanwhile
                pending = dispatched
            self._read(pending)
            self._saver.finish(self.state, self._progress())

    def _first_step(self) -> PendingStep:
        """Makes the step that compiles; its time is nobody's training time."""
        with self._clock.paused():
            start = time.monotonic()
            pending = self._dispatch()
            jax.block_until_ready(pending.metrics)
            _log.info("First step done, compiled, in %.1f s.", time.monotonic() - start)
        return pending._replace(timed=False)

    def _dispatch(self) -> PendingStep:
        """Starts the next step; returns its metrics, which are not there yet."""
        first_row = self._batches.state["next_row"]
        with self._window.waiting():
            batch = next(self._batches)
        self.state, step_metrics = self._steps.train_step(self.state, batch)
        self.step += 1
        return PendingStep(self.step, first_row, step_metrics)

    def _read(self, pending: PendingStep | None) -> None:
        """Waits for the metrics of a step, and logs when it is time.

        Raises:
            UserError: if too many steps in a row were skipped.
        """
        if pending is None:
            return
        step = pending.step
        found = jax.device_get(pending.metrics)
        nats_A = found.pop("nats_A")
        values = {name: float(value) for name, value in found.items()}
        skipped = self._skipped.look(step, pending.first_row, values, nats_A)
        self._tokens_seen += int(values["n_targets"])
        self._window.add(values, skipped=skipped, timed=pending.timed)
        self._console.advance(step, values["nats"] / values["n_targets"])
        if step % self._config.train.log_interval == 0:
            self._write_window(step)

    def _write_window(self, step: int) -> None:
        train = self._config.train
        rows_seen = step * train.batch_size * train.gradient_accumulation_steps
        values = {
            **self._window.scalars(),
            "optim/skipped_steps": self._skipped.total,
            "data/tokens_seen": self._tokens_seen,
            "data/epoch": rows_seen / self._rows.rows_per_epoch,
        }
        self._seconds_per_step = self._window.seconds_per_step
        self._writer.write(step, values)
        self._console.line(step, training_line(values, self._eta(step)))
        self._window.restart()

    def _eta(self, step: int) -> float | None:
        """Returns seconds until the end, at the speed of now; hooks take what they last took."""
        if self._seconds_per_step is None:
            return None
        steps_left = self._config.train.max_iters - step
        hook_seconds = sum(
            seconds * (steps_left / hook.interval if hook.interval else 1)
            for hook, seconds in self._hook_seconds.items()
        )
        return steps_left * self._seconds_per_step + hook_seconds

    def _between_steps(self, due: list[PeriodicCallback]) -> None:
        with self._clock.paused():
            for hook in due:
                start = time.monotonic()
                hook.run(self.step, self.state.eval_params)
                self._hook_seconds[hook] = time.monotonic() - start
            if self._saver.due():
                self._save()

    def _evaluate_and_save(self, step: int, params: Any) -> None:
        start = time.monotonic()
        values = self._validation.run(params)
        loss = values["loss"]
        finite = math.isfinite(loss)
        is_best = finite and (self._best_val_loss is None or loss < self._best_val_loss)
        if is_best:
            self._best_val_loss = loss
        self._writer.write(step, {f"val/{name}": value for name, value in values.items()})
        seconds = format_seconds(time.monotonic() - start)
        self._console.line(
            step,
            f"val loss {loss:.4f} | bits/byte {values['bits_per_byte']:.4f}"
            f"{' | best so far' if is_best else ''} | {seconds}",
        )
        if not finite:
            _log.error("The val loss is %g: this state is not saved.", loss)
        elif is_best or self._config.checkpoint.always_save_checkpoint:
            self._save(loss)

    def _save(self, val_loss: float | None = None) -> None:
        if self._skipped.in_a_row:  # a state that may be ruined must not displace good ones
            _log.warning("Step %d was skipped: its checkpoint waits for a good step.", self.step)
            self._saver.request_save()
        else:
            self._saver.save(self.state, self._progress(), val_loss)

    def _prepare_to_save(self) -> None:
        """Sees to what belongs beside a checkpoint: it is never later than its metrics."""
        self._writer.sync()
        if not (Path(self._config.workdir) / TOKENIZER).exists():
            _log.error("%s has lost its files: they are written anew.", self._config.workdir)
            _write_description(self._config, self._store)

    def _announce_stop(self) -> str:
        """Returns what a wish to stop leads to, and how long that takes."""
        step, save = self._seconds_per_step, self._saver.seconds
        if step is None or save is None:
            return "stopping after this step, with a checkpoint; both were not timed yet."
        return (
            f"stopping after this step, with a checkpoint: within about "
            f"{format_seconds(2 * step + save + 1)}."
        )

    def _progress(self) -> Progress:
        return Progress(
            data_state=self._batches.state,
            tokens_seen=self._tokens_seen,
            trained_seconds=self._clock.seconds,
            best_val_loss=self._best_val_loss,
            window=self._window.state,
        )

    def close(self) -> None:
        """Closes what was opened; safe after an error."""
        self._batches.close()
        self._console.close()
        self._writer.close()
