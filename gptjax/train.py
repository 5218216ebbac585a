"""The run: build, restore, loop, sample. No arithmetic here: steps compute, writers write."""

import logging
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from configs.flags import UserError
from data_pipeline.files import write_atomically
from data_pipeline.packing import PackedRows
from data_pipeline.pipeline import BatchIterator
from data_pipeline.prepare import prepare
from data_pipeline.token_store import TOKENIZER, TokenStore
from gptjax import attention, generate, model, plan
from gptjax import config as config_lib
from gptjax.checkpoint import Checkpoints, Progress
from gptjax.evaluate import Validation
from gptjax.metrics import Clock, Window, format_seconds, peak_flops
from gptjax.model import GPTConfig
from gptjax.sharding import make_mesh, place_batch
from gptjax.signals import StopSignal
from gptjax.train_step import StepFunctions, TrainState
from gptjax.writers import Console, MetricsWriter, training_line

_log = logging.getLogger(__name__)


def train_and_evaluate(config: ConfigDict) -> TrainState:
    """Prepares the data, trains on to `train.max_iters` from where the workdir stands, samples.

    Args:
        config: see configs/base.py.

    Returns:
        The last state.

    Raises:
        UserError: for a configuration, data or workdir that cannot work; nothing is changed then.
            Or later, if the loss or a gradient is not finite; such a state is never saved.
    """
    config_lib.validate(config, jax.device_count())
    store = TokenStore.open(prepare(config))
    config_lib.validate_store(config, store)
    workdir = Path(config.workdir)
    gpt = GPTConfig.from_config(config, store.tokenizer.vocab_size)
    _log.info("%s", plan.describe(plan.make_plan(config, gpt, store)))
    _log.info("Attention: %s (%s).", *attention.choose(config))

    mesh = make_mesh(config.mesh.fsdp)
    steps = StepFunctions(config, gpt, store.tokenizer.token_bytes, mesh)
    checkpoints = Checkpoints(workdir, config, store)
    try:
        restored = checkpoints.restore(steps)
        config_lib.save(config, workdir)  # only now: a run that is refused must change nothing
        write_atomically(workdir / TOKENIZER, (store.path / TOKENIZER).read_bytes())
        state, progress = restored or (steps.init_state(), Progress())
        run = Run(config, store, steps, checkpoints, state, progress)
        try:
            run.loop()
        finally:
            run.close()
    finally:
        checkpoints.close()
    if run.step == config.train.max_iters:
        _print_samples(config, gpt, run.state, store.tokenizer)
    return run.state


class Run:
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
        self._checkpoints = checkpoints
        self._validation = Validation(config, store, steps)
        rows = PackedRows(
            store.split("train"),
            block_size=config.model.block_size,
            seed=config.seed,
            bos_id=store.tokenizer.bos_id,
            segments=config.data.document_mask,
        )
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
        self._tokens_seen = progress.tokens_seen
        self._best_val_loss = progress.best_val_loss
        self._clock = Clock(progress.trained_seconds)
        peak = peak_flops(jax.devices()[0].device_kind)
        self._window = Window(
            self._clock,
            flops_per_token=model.flops_per_token(steps.gpt),
            peak_flops=None if peak is None else peak * jax.device_count(),
        )
        self._rows_per_epoch = rows.rows_per_epoch
        self._writer = MetricsWriter(Path(config.workdir), config, self.step)
        self._console = Console(config.train.max_iters, self.step)

    def loop(self) -> None:
        """Trains until `train.max_iters`, `train.max_hours` or a signal; saves the last state."""
        train, eval_interval = self._config.train, self._config.eval.eval_interval
        if self.step >= train.max_iters:
            _log.info("Nothing left to train: %d of %d steps are done.", self.step, train.max_iters)
            return
        stop_time = None if train.max_hours is None else time.monotonic() + 3600 * train.max_hours
        unread: tuple[int, Any] | None = self._first_step()
        with StopSignal() as stop:
            while True:
                at_end = self.step >= train.max_iters
                if at_end or self.step % eval_interval == 0:
                    if unread is not None:
                        self._read(*unread)
                    unread = None
                    self._evaluate_and_save()
                if at_end or stop.received:
                    break
                if stop_time is not None and time.monotonic() > stop_time:
                    _log.info("train.max_hours = %g have passed: stopping.", train.max_hours)
                    break
                dispatched = self._dispatch()
                if unread is not None:  # the device works on the next step meanwhile
                    self._read(*unread)
                unread = dispatched
        if unread is not None:
            self._read(*unread)
        self._checkpoints.save(self.state, self._progress())
        self._checkpoints.wait()

    def _first_step(self) -> tuple[int, Any]:
        """Makes the step that compiles; its time is nobody's training time."""
        with self._clock.paused():
            start = time.monotonic()
            unread = self._dispatch()
            jax.block_until_ready(unread)
            _log.info("First step done, compiled, in %.1f s.", time.monotonic() - start)
        self._window.restart()
        return unread

    def _dispatch(self) -> tuple[int, Any]:
        """Starts the next step; returns its number and metrics, which are not there yet."""
        with self._window.waiting():
            batch = next(self._batches)
        self.state, step_metrics = self._steps.train_step(self.state, batch)
        self.step += 1
        return self.step, step_metrics

    def _read(self, step: int, step_metrics: Any) -> None:
        """Waits for the metrics of `step`, checks them and logs when it is time.

        Raises:
            UserError: if loss or gradient norm is not finite.
        """
        values = {name: float(value) for name, value in jax.device_get(step_metrics).items()}
        loss = values["nats"] / values["n_targets"]
        if not (np.isfinite(loss) and np.isfinite(values["grad_norm"])):
            raise UserError(
                f"step {step}: loss {loss}, gradient norm {values['grad_norm']}. Nothing of this "
                f"state was saved, the last checkpoint is good: run again with a lower "
                f"--config.optim.learning_rate or more --config.optim.warmup_iters."
            )
        self._tokens_seen += int(values["n_targets"])
        self._window.add(values)
        self._console.advance(step, loss)
        train = self._config.train
        if step % train.log_interval == 0:
            rows_seen = step * train.batch_size * train.gradient_accumulation_steps
            scalars = {
                **self._window.scalars(),
                "data/tokens_seen": self._tokens_seen,
                "data/epoch": rows_seen / self._rows_per_epoch,
            }
            eta = (train.max_iters - step) * self._window.seconds_per_step
            self._writer.write(step, scalars)
            self._console.line(step, training_line(scalars, eta))
            self._window.restart()

    def _evaluate_and_save(self) -> None:
        with self._clock.paused():
            start = time.monotonic()
            values = self._validation.run(self.state.params)
            loss = values["loss"]
            is_best = self._best_val_loss is None or loss < self._best_val_loss
            if is_best:
                self._best_val_loss = loss
            self._writer.write(self.step, {f"val/{name}": value for name, value in values.items()})
            seconds = format_seconds(time.monotonic() - start)
            self._console.line(
                self.step,
                f"val loss {loss:.4f} | bits/byte {values['bits_per_byte']:.4f}"
                f"{' | best so far' if is_best else ''} | {seconds}",
            )
            if is_best or self._config.checkpoint.always_save_checkpoint:
                self._checkpoints.save(self.state, self._progress(), val_loss=loss)

    def _progress(self) -> Progress:
        return Progress(
            data_state=self._batches.state,
            tokens_seen=self._tokens_seen,
            trained_seconds=self._clock.seconds,
            best_val_loss=self._best_val_loss,
        )

    def close(self) -> None:
        """Closes what was opened; safe after an error."""
        self._batches.close()
        self._console.close()
        self._writer.close()


def _print_samples(config: ConfigDict, gpt: GPTConfig, state: TrainState, tokenizer: Any) -> None:
    """Prints a continuation of each of `sample.prompts` and keeps them in workdir/samples."""
    sampling = {name: value for name, value in config.sample.items() if name != "prompts"}
    texts = []
    for prompt in config.sample.prompts:
        pieces = generate.generate_text(
            gpt, state.params, tokenizer, prompt, seed=config.seed, **sampling
        )
        texts.append(prompt + "".join(pieces))
        _log.info("Sample:\n%s\n", texts[-1])
    path = Path(config.workdir) / "samples" / f"{int(state.step)}.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n\n---\n\n".join(texts) + "\n")
