"""The checkpoints of a workdir: saved in the background, kept or removed, restored.

A checkpoint named k holds the state after k optimizer updates: the items `params`, `opt_state`,
`rng` and, where the run keeps one, `ema_params`; and `meta` (data position, clock, configuration,
hashes). All of it is verified by digests when it is read; a damaged one is set aside, never
deleted, and the one before it is used.
"""

import dataclasses
import logging
import shutil
import time
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from configs.errors import UserError
from data_pipeline import background
from data_pipeline.progress import format_seconds
from data_pipeline.token_store import Stores
from gptjax.checkpoint import shards, storage
from gptjax.checkpoint.compatibility import identity
from gptjax.checkpoint.items import summary
from gptjax.checkpoint.restore import newest_good
from gptjax.checkpoint.storage import NotFinite
from gptjax.common.workdir import CHECKPOINTS, WorkdirLock, refuse_links
from gptjax.optim import decay_start
from gptjax.step import StepFunctions, TrainState
from gptjax.step.multihost import any_process, on_process_zero, together

_log = logging.getLogger(__name__)

EMA = "ema_params"  # item of runs with optim.ema_decay
_FIRST_DELAY, _LONGEST_DELAY = 10.0, 600.0  # seconds between tries; each doubles
_PATIENCE = 60.0  # seconds that training waits for the save before
_LAST_TRIES = 3  # of the save that ends a run
_LAST_DELAY = 2.0  # seconds between them


@dataclasses.dataclass(frozen=True)
class RunProgress:
    """What a checkpoint keeps of its run besides arrays."""

    data_state: dict[str, int] | None = None  # `BatchIterator.state` after the last batch used
    tokens_seen: int = 0  # target tokens, over all restarts
    trained_seconds: float = 0.0  # see `metrics.Clock`
    best_val_loss: float | None = None  # nats per token, of all evaluations of as many rows
    val_rows: int | None = None  # validation rows of each evaluation
    window: dict[str, Any] | None = None  # `metrics.Window.state`: steps not written yet


class Checkpoints:
    """The checkpoints of one workdir, which no other run can use meanwhile.

    A save is written by a thread while training continues; one that fails is logged and due again
    later. Several processes call `save`, `finish` and `restore` at the same steps; each writes its
    part, and a save succeeds or fails for all.
    """

    def __init__(
        self, workdir: Path, config: ConfigDict, store: Stores, teacher_hash: str | None = None
    ):
        """Locks the workdir and removes what interrupted saves left in it.

        `teacher_hash` is of the parameters of train.teacher, which a resumed run must have again.
        Raises UserError if another run uses the workdir, or it cannot be written or has links.
        """
        self.before_save: Callable[[], None] = lambda: None  # called on process 0
        self.save_seconds: float | None = None  # that the last save took
        self._folder = workdir / CHECKPOINTS
        self._config = config
        self._identity = identity(config, store, teacher_hash)
        self._lock: WorkdirLock | None = None  # of process 0
        self._future: futures.Future[float] | None = None  # of the save in progress: seconds
        self._step = 0  # of that save
        self._failures = 0  # in a row
        self._error: BaseException | None = None  # of the last save
        self._next_try: float | None = None  # time.monotonic(); None: no save is pending
        self._evaluated: tuple[int, float | None] = (0, None)  # last step with a val loss, the loss
        on_process_zero(lambda: self._open(workdir), UserError)

    def _open(self, workdir: Path) -> int:
        refuse_links(workdir)
        try:
            self._lock = WorkdirLock(workdir)
            self._folder.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{workdir} cannot be written ({error}): repair that, or give the run another "
                f"folder (--config.workdir=...)."
            ) from error
        storage.clean(self._folder)
        return 0

    @property
    def latest_step(self) -> int | None:
        """Step of the newest checkpoint, None without one."""
        return max(storage.list_steps(self._folder), default=None)

    def save(self, state: TrainState, progress: RunProgress, val_loss: float | None = None) -> None:
        """Starts to save a state, unless its step is on the disk; see `save_due` if that fails.

        `state` is copied before this returns, so it can be donated. Without a `val_loss` (nats per
        token) a checkpoint is never the best; a second try for the same step need not give it.
        """
        if val_loss is not None:
            self._evaluated = (int(state.step), float(val_loss))
        if any_process(not self.wait(_PATIENCE)):
            _log.warning(
                "The disk is slow: the checkpoint of step %d is still being written. Training "
                "continues, and the next checkpoint is saved when that one is.",
                self._step,
            )
            self.request_save()
            return
        self._step, self._next_try, self._error = int(state.step), None, None
        try:
            self._future = self._start(state, progress)
        except Exception as error:
            self._failed(error)

    def _start(self, state: TrainState, progress: RunProgress) -> futures.Future[float] | None:
        """Copies a state and starts to write it, unless its step is on the disk."""
        started, step = time.monotonic(), int(state.step)
        if step <= on_process_zero(self._prepare, Exception):
            return None
        items = {name: tree for name, tree in _items(state).items() if tree is not None}
        copy = together(lambda: shards.copy(items), Exception)
        meta = {
            "step": step,
            "val_loss": self._evaluated[1] if self._evaluated[0] == step else None,
            "progress": dataclasses.asdict(progress),
            **self._identity,
        }

        def write() -> float:
            self._write(copy, meta)
            return time.monotonic() - started

        # It can be cut off by the end of the program: half a checkpoint has no name.
        return background.start(f"save-{step}", write)

    def _prepare(self) -> int:
        self.before_save()
        return max(storage.list_steps(self._folder), default=-1)

    def _write(self, copy: shards.Copy, meta: dict[str, Any]) -> None:
        """Writes a checkpoint, with all processes, and removes old ones."""
        storage.write(self._folder / str(meta["step"]), copy, meta, self._ensure_lock)
        self._remove_old()

    def _ensure_lock(self) -> None:
        if self._lock is not None:
            self._lock.ensure()

    def _remove_old(self) -> None:
        if self._lock is not None:
            try:
                self._prune()
            except OSError as error:
                _log.warning("Old checkpoints could not be removed: %s", error)

    def _prune(self) -> None:
        """Removes what is neither among the latest nor the best, nor needed to extend the run."""
        # Not by Orbax's policies: its BestN keeps n checkpoints even if they have no val loss.
        steps = storage.list_steps(self._folder)
        kept = set(steps[-self._config.checkpoint.keep_latest :])
        kept |= set(storage.by_val_loss(self._folder)[: self._config.checkpoint.keep_best])
        optim = self._config.optim
        if optim.schedule == "wsd":  # to resume from with a larger max_iters
            start = decay_start(optim, self._config.train.max_iters)
            kept.add(max((step for step in steps if step <= start), default=-1))
        for step in set(steps) - kept:
            storage.remove(self._folder / str(step))

    def space_notice(self, state: TrainState) -> str:
        """Returns a warning where the disk cannot hold the checkpoints that are to be kept."""
        kept = self._config.checkpoint.keep_latest + self._config.checkpoint.keep_best
        to_come = kept + 1 - len(storage.list_steps(self._folder))  # the new one precedes removals
        needed = max(0, to_come) * sum(x.nbytes for x in jax.tree.leaves(state))
        if needed <= (free := shutil.disk_usage(self._folder).free):
            return ""
        return (
            f"{self._folder} will need {needed / 1e9:.3g} GB more for its checkpoints, and "
            f"{free / 1e9:.3g} GB are free: saves will fail unless you free some space or lower "
            f"--config.checkpoint.keep_latest or --config.checkpoint.keep_best."
        )

    def request_save(self) -> None:
        """Makes a save due."""
        self._next_try = time.monotonic()

    def save_due(self) -> bool:
        """Returns whether a failed or requested save can be tried now, as this process sees it.

        Takes microseconds. Several processes agree elsewhere on the step at which all save.
        """
        return self.wait(0) and self._next_try is not None and time.monotonic() >= self._next_try

    def wait(self, timeout: float | None = None) -> bool:
        """Waits, at most `timeout` seconds, and returns whether no save is in progress any more."""
        if self._future is None:
            return True
        if not futures.wait([self._future], timeout).done:
            return False
        future, self._future = self._future, None
        if (error := future.exception()) is not None:
            self._failed(error)
            return True
        self.save_seconds = future.result()
        if self._failures:
            _log.info("Saving works again: the checkpoint of step %d is on the disk.", self._step)
        self._failures = 0
        return True

    def _failed(self, error: BaseException) -> None:
        delay = min(_FIRST_DELAY * 2 ** min(self._failures, 9), _LONGEST_DELAY)
        self._failures += 1
        self._error, self._next_try = error, time.monotonic() + delay
        _log.error(
            "The checkpoint of step %d could not be saved (%s); those before it are untouched. The "
            "next try is in %s while training continues, or at its end.",
            *(self._step, _describe(error, self._folder), format_seconds(delay)),
        )

    def finish(self, state: TrainState, progress: RunProgress) -> None:
        """Saves the last state and waits until it is on the disk.

        Raises UserError if that fails several times, or the state is not finite.
        """
        self.wait()
        for tries_left in reversed(range(_LAST_TRIES)):
            self.save(state, progress)
            self.wait()
            if (error := self._error) is None:
                self._remove_old()  # a process that was killed after it had saved did not
                return
            if isinstance(error, NotFinite):
                raise error
            if not tries_left:
                newest = self.latest_step
                raise UserError(
                    f"the state of step {self._step} could not be saved, {_LAST_TRIES} times "
                    f"({_describe(error, self._folder)}). The newest good checkpoint is "
                    f"{'none' if newest is None else f'that of step {newest}'}: repair the disk or "
                    f"the folder and run the same command again, which resumes from it."
                ) from error
            time.sleep(_LAST_DELAY)

    def close(self) -> None:
        """Waits for the save in progress and unlocks the workdir."""
        self.wait()
        if self._lock is not None:
            self._lock.release()

    def restore(self, steps: StepFunctions) -> tuple[TrainState, RunProgress] | None:
        """Returns the newest good checkpoint's state, on the devices of `steps`; None without one.

        Damaged ones that are newer are moved to `checkpoints/damaged`, and that is logged. Raises
        UserError if the checkpoint belongs to another run (all differences are listed) or to
        another version of this program, or if all are damaged; nothing is changed then.
        """
        shapes = jax.tree.map(
            lambda x, s: x.update(sharding=s), steps.state_shapes, steps.state_shardings
        )
        if (newest := newest_good(self._folder, self._identity, _items(shapes))) is None:
            return None
        step, items, meta = newest
        state = TrainState(
            step=jax.device_put(np.int32(step), shapes.step.sharding),
            dropout_key=items.pop("rng")["dropout_key"],
            **items,
        )
        return state, RunProgress(**meta["progress"])


def _items(state: Any) -> dict[str, Any]:
    """Returns the trees of a TrainState by the names of their items; None for an absent one."""
    return {
        "params": state.params,
        "opt_state": state.opt_state,
        "rng": {"dropout_key": state.dropout_key},
        EMA: state.ema_params,
    }


def save_params(workdir: Path, params: Any, **meta: Any) -> None:
    """Saves parameters alone as the checkpoint 0 of a new workdir, which no run resumes from."""
    folder = workdir / CHECKPOINTS
    folder.mkdir(parents=True)
    meta = {"step": 0, "val_loss": None, **meta}
    storage.write(folder / "0", shards.copy({"params": params}), meta)


def _describe(error: BaseException, folder: Path) -> str:
    try:
        return f"{summary(error)}; {shutil.disk_usage(folder).free / 1e9:.1f} GB free"
    except OSError:
        return summary(error)
