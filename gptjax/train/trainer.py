"""The run: build, restore, loop. Steps compute, the trainer orders them, the log reports them."""

import contextlib
import logging
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from configs.cli import log_lines_by_default
from configs.errors import UserError
from configs.first_steps import row_length
from configs.mixture import resolved
from configs.validate import validate
from data_pipeline.files import write_atomically
from data_pipeline.loader import BatchIterator
from data_pipeline.progress import Waiting
from data_pipeline.subset import training_rows, validate_store
from data_pipeline.token_store import TOKENIZER, Stores
from data_pipeline.verification import Verification
from gptjax.checkpoint import Checkpoints, RunProgress
from gptjax.common.one_ahead import one_ahead
from gptjax.common.signals import StopSignal
from gptjax.common.workdir import TRACES, save_config
from gptjax.metrics import wandb_run
from gptjax.model import GPTConfig, attention
from gptjax.optim import rewarm_notice
from gptjax.plan.check import refuse_unfit, short_form
from gptjax.step import (
    Decision,
    StepFunctions,
    TrainState,
    Votes,
    make_mesh,
    place_batch,
    place_votes,
)
from gptjax.step.first_step_times import FirstStepTime
from gptjax.step.multihost import any_process
from gptjax.train import callbacks, distillation
from gptjax.train.callbacks import PeriodicCallback
from gptjax.train.duration import announce_duration
from gptjax.train.init_state import initial_state
from gptjax.train.open_store import open_store
from gptjax.train.step_trace import StepTrace
from gptjax.train.training_log import DispatchedStep, TrainingLog
from gptjax.train.validation import Validation

_log = logging.getLogger(__name__)


def train_and_evaluate(config: ConfigDict, traced_steps: range = range(0)) -> TrainState:
    """Prepares the data and trains to `train.max_iters`, from the newest checkpoint if any.

    The `traced_steps` are traced, see `StepTrace`. Returns the last state. Raises UserError for a
    configuration, data or workdir that cannot be used, before the workdir is changed; later, as
    `Trainer.loop` does. A script that has not set up logging gets the lines of the command.
    """
    log_lines_by_default()
    problems = [*callbacks.problems(config), *wandb_run.problems(config.log)]
    problems += distillation.problems(config)
    validate(config, jax.device_count(), problems)
    config = resolved(config)
    run_plan = refuse_unfit(config)
    store = open_store(config)
    validate_store(config, store)
    workdir = Path(config.workdir)
    model_config = GPTConfig.from_config(config, store.tokenizer.vocab_size)
    _log.info("%s", short_form(run_plan, store))
    _log.info("Attention: %s (%s).", *attention.choose(config))

    mesh = make_mesh(config.mesh.fsdp)
    steps = StepFunctions(config, model_config, store.tokenizer.token_bytes, mesh)
    teacher = distillation.load_teacher(config, steps, store, mesh)
    with contextlib.closing(Checkpoints(workdir, config, store, teacher.hash)) as checkpoints:
        restored = checkpoints.restore(steps)
        state, progress = restored or (initial_state(config, steps, store), RunProgress())
        done, max_iters = int(state.step), config.train.max_iters
        if notice := rewarm_notice(config.optim, max_iters):
            _log.info("%s", notice)
        if jax.process_index() == 0 and (notice := checkpoints.space_notice(state)):
            _log.warning("%s", notice)
        trace = StepTrace(workdir / TRACES, traced_steps, done, max_iters)
        try:
            _write_description(config, store)  # only now: a run that is refused changes nothing
        except OSError as error:
            raise UserError(
                f"{workdir} cannot be written ({error.strerror}): free some space, or give the run "
                f"another folder (--config.workdir=...)."
            ) from error
        trainer = Trainer(config, store, steps, teacher, checkpoints, state, progress, trace)
        with contextlib.closing(trainer):
            trainer.loop()
    return trainer.state


def _write_description(config: ConfigDict, store: Stores) -> None:
    """Writes config.json and the tokenizer, which every use of a checkpoint needs."""
    if jax.process_index() > 0:
        return
    workdir = Path(config.workdir)
    save_config(config, workdir)
    any_store = next(iter(store.sources.values()))  # all have the same tokenizer
    write_atomically(workdir / TOKENIZER, (any_store.path / TOKENIZER).read_bytes())


class Trainer:
    """One process's share of a run: state, batches, callbacks, checkpoints and the loop."""

    def __init__(
        self,
        config: ConfigDict,
        store: Stores,
        steps: StepFunctions,
        teacher: distillation.Teacher,
        checkpoints: Checkpoints,
        state: TrainState,
        progress: RunProgress,
        trace: StepTrace,
    ):
        """Reads the validation rows; starts reading training rows ahead and verifying the store."""
        self._verification = Verification(store)
        self.state = state
        self.step = int(state.step)
        self._config = config
        self._store = store
        self._train_step = lambda *arguments: steps.train_step(*arguments, *teacher.params)
        self._batch_sharding = steps.batch_sharding
        self._stop: StopSignal | None = None  # while the loop runs
        self._decision = Decision() if jax.process_count() > 1 else None
        self._row_length: int | None = None  # of the rows that the step is compiled for
        self._trace = trace
        self._checkpoints = checkpoints
        checkpoints.before_save = self._before_save
        self._validation = Validation(config, store, steps)
        self._best_val_loss = progress.best_val_loss
        if progress.val_rows != self._validation.n_rows:  # other rows have other losses
            self._best_val_loss = None
        rows = training_rows(config, store)
        self._batches = BatchIterator(
            rows,
            batch_size=config.train.batch_size,
            micro_steps=config.train.gradient_accumulation_steps,
            state=progress.data_state,
            host=jax.process_index(),
            n_hosts=jax.process_count(),
            prefetch=config.data.prefetch_batches,
            place=lambda batch: place_batch(steps.batch_sharding, batch),
        )
        models = steps.model_config, steps.teacher
        self._training_log = TrainingLog(config, *models, rows, state, progress)
        writer = self._training_log.writer
        self.callbacks = [
            *callbacks.measurements(config, steps.model_config, store.tokenizer, writer),
            PeriodicCallback(config.eval.eval_interval, self._evaluate_and_save),
            *callbacks.reports(config),
        ]

    def loop(self) -> None:
        """Trains until `train.max_iters`, `train.max_hours` or a signal; saves the last state.

        Raises UserError if the store is damaged, after `train.max_consecutive_skips` skipped steps
        in a row and where all were skipped, without saving; or if the last state cannot be saved.
        """
        train = self._config.train
        # Clocks differ: some processes would leave, and the others wait in the first step.
        if self._at_end or any_process(self._out_of_time()):
            reason = "" if self._at_end else f" in train.max_hours = {train.max_hours:g}"
            text = "Nothing left to train: %d of %d steps are done%s."
            _log.info(text, self.step, train.max_iters, reason)
            self._between_steps([callback for callback in self.callbacks if callback.rerun])
            return
        with StopSignal(self._stop_notice) as self._stop:
            self._stop.nothing_to_save = True
            if self._config.init_from and not self.step:
                self._evaluate_start()
            self._step_that_compiles()
            self._stop.nothing_to_save = False
            self._between_steps(self._due())
            while not self._stopping:
                if self._next_compiles:
                    self._step_that_compiles()
                else:
                    for dispatched in one_ahead(self._steps_until_due()):
                        self._report(dispatched)
                self._between_steps(self._due())
            if self._out_of_time() and not self._at_end:
                notice = self._stop_notice()
                _log.info("train.max_hours = %g is reached: %s", train.max_hours, notice)
            self._verification.wait()
            early = self._stop.received if self._decision is None else not self._at_end
            if self._training_log.skipped.total >= self.step and not early:
                raise UserError(
                    f"all {self.step:,} steps were skipped, for their loss or gradient was not "
                    f"finite: nothing was learnt, and nothing was saved. Start in another workdir "
                    f"with a lower --config.optim.learning_rate, or with "
                    f"--config.model.compute_dtype=float32; the documents of each step are in "
                    f"metrics.jsonl (skipped/documents)."
                )
            self._checkpoints.finish(self.state, self._progress())

    @property
    def _at_end(self) -> bool:
        return self.step >= self._config.train.max_iters

    def _out_of_time(self) -> bool:
        hours = self._config.train.max_hours
        return hours is not None and self._training_log.clock.seconds >= 3600 * hours

    @property
    def _stop_requested(self) -> bool:
        """Whether this process has a reason to stop before the end."""
        return (self._stop is not None and self._stop.received) or self._out_of_time()

    @property
    def _stopping(self) -> bool:
        """Whether the run stops here: with several processes, once all have read the same votes."""
        stop = self._stop_requested if self._decision is None else self._decision.stop
        return self._at_end or stop

    @property
    def _save_due(self) -> bool:
        if self._decision is None:
            return self._checkpoints.save_due()
        return self._decision.save

    def _evaluate_start(self) -> None:
        """Reports the val loss of another run's parameters, with which this one begins."""
        with self._training_log.clock.paused():
            values, seconds = self._validate(self.state.eval_params)
            self._training_log.add_validation(0, values, is_best=False, seconds=seconds)

    @property
    def _next_compiles(self) -> bool:
        """Whether the next step has rows of another length than the last."""
        return row_length(self._config, self.step) != self._row_length

    def _step_that_compiles(self) -> None:
        """Makes the first step with rows of its length, which does not count as training time."""
        with self._training_log.clock.paused():
            if self._row_length is None:
                announce_duration(self._config, self._validation, self.state.params, self.step)
            self._row_length = row_length(self._config, self.step)
            self._training_log.set_row_length(self._row_length)
            known = FirstStepTime(self._config, self._row_length)
            shown = jax.process_index() == 0
            with Waiting("compiling the step", before=known.seconds, shown=shown) as waiting:
                dispatched = self._dispatch()
                jax.block_until_ready(dispatched.metrics)
            known.keep(waiting.seconds)
            before = "" if known.seconds is None else f", the last time in {known.seconds:.1f} s"
            rows = f" with rows of {self._row_length}" if self._config.train.row_lengths else ""
            _log.info("First step%s done, compiled, in %.1f s%s.", rows, waiting.seconds, before)
        self._report(dispatched, timed=False)

    def _steps_until_due(self) -> Iterator[DispatchedStep]:
        """Dispatches steps until a callback or a save is due or the run stops."""
        yield self._dispatch()
        while not (self._due() or self._save_due or self._stopping or self._next_compiles):
            yield self._dispatch()

    def _dispatch(self) -> DispatchedStep:
        """Starts the next step without waiting for its result."""
        self._verification.check()
        first_row = self._batches.state["next_row"]
        with self._training_log.window.waiting():
            batch = next(self._batches)
        if self._decision is not None:
            votes = Votes(self._stop_requested, self._checkpoints.save_due())
            batch = {**batch, "votes": place_votes(self._batch_sharding, votes)}
        self.step += 1
        with self._trace.step(self.step, lambda: self.state):
            self.state, metrics = self._train_step(self.state, batch, self._row_length)
        return DispatchedStep(self.step, first_row, metrics)

    def _report(self, step: DispatchedStep, *, timed: bool = True) -> None:
        """Reports the metrics of a step; a damaged store is named before what it has led to."""
        if self._decision is not None:
            self._decision.read(np.asarray(step.metrics.pop("votes")))
        try:
            self._training_log.add(step, timed=timed)
        except UserError:
            self._verification.wait()
            raise

    def _due(self) -> list[PeriodicCallback]:
        return [c for c in self.callbacks if c.due(self.step, at_end=self._at_end)]

    def _between_steps(self, due: Sequence[PeriodicCallback]) -> None:
        """Runs callbacks, and a save that was requested, while the training clock stands still."""
        with self._training_log.clock.paused():
            for callback in due:
                with self._training_log.running(callback):
                    callback.run(self.step, self.state.eval_params)
            if self._save_due:
                self._save()
                if self._decision is not None:
                    self._decision.save = False

    def _validate(self, params: Any) -> tuple[dict[str, float], float]:
        self._verification.wait()  # a state that a damaged store has made is not saved
        start = time.monotonic()
        return self._validation.run(params), time.monotonic() - start

    def _evaluate_and_save(self, step: int, params: Any) -> None:
        values, seconds = self._validate(params)
        finite = math.isfinite(loss := values["loss"])
        is_best = finite and (self._best_val_loss is None or loss < self._best_val_loss)
        self._best_val_loss = loss if is_best else self._best_val_loss
        self._training_log.add_validation(step, values, is_best=is_best, seconds=seconds)
        if not finite:
            _log.error("The val loss is %g: this state is not saved.", loss)
        elif is_best or self._config.checkpoint.always_save_checkpoint:
            self._save(loss)

    def _save(self, val_loss: float | None = None) -> None:
        if self._training_log.skipped.in_a_row:  # a bad state must not displace good checkpoints
            _log.warning("Step %d was skipped: its checkpoint waits for a good step.", self.step)
            self._checkpoints.request_save()
        else:
            self._checkpoints.save(self.state, self._progress(), val_loss)

    def _before_save(self) -> None:
        """Syncs the metrics, so that no checkpoint is newer than they are; restores lost files."""
        self._training_log.writer.sync()
        if not (Path(self._config.workdir) / TOKENIZER).exists():
            _log.error("%s has lost its files: they are written again.", self._config.workdir)
            _write_description(self._config, self._store)

    def _stop_notice(self) -> str:
        return self._training_log.stop_notice(self._checkpoints.save_seconds)

    def _progress(self) -> RunProgress:
        return RunProgress(
            data_state=self._batches.state,
            best_val_loss=self._best_val_loss,
            val_rows=self._validation.n_rows,
            **self._training_log.progress,
        )

    def close(self) -> None:
        """Closes the trace, the batches and the log; safe after an error."""
        self._trace.close()
        self._batches.close()
        self._training_log.close()
