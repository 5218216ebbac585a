"""The checkpoints of a workdir: which are kept, and which a run goes on from.

A checkpoint named k holds the state after k optimizer updates: the items `params`, `opt_state`,
`rng` and, where the run keeps one, `ema_params`; and `meta` (data position, clock, configuration,
hashes). All of it is proved by digests when it is read; a damaged one is set aside, never deleted,
and the one before it is used.

python -m gptjax.checkpoint verify --workdir=runs/quickstart
"""

import dataclasses
import logging
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from configs.errors import UserError
from data_pipeline.token_store import TokenStore
from gptjax.checkpoint import storage
from gptjax.checkpoint.compatibility import changes, identity, incompatibilities
from gptjax.checkpoint.storage import Damaged, NotFinite
from gptjax.common.lock import WorkdirLock
from gptjax.common.workdir import CHECKPOINTS
from gptjax.optim.schedules import decay_start
from gptjax.step.multihost import host_copy, on_process_zero
from gptjax.step.train_state import TrainState
from gptjax.step.train_step import StepFunctions

_log = logging.getLogger(__name__)

EMA = "ema_params"  # item of runs with optim.ema_decay
_NONE = 2**31 - 1  # no step has this number
_SLOW = 10.0  # seconds of waiting for the last save that are told


class SaveFailed(Exception):
    """A state is not on the disk; what was there before is. Saving a later one may well succeed."""


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a checkpoint knows of its run besides arrays."""

    data_state: dict[str, int] | None = None  # `BatchIterator.state` after the last batch used
    tokens_seen: int = 0  # target tokens, over all restarts
    trained_seconds: float = 0.0  # see `metrics.Clock`
    best_val_loss: float | None = None  # nats per token, of all evaluations so far
    window: dict[str, Any] | None = None  # `metrics.Window.state`: steps not written yet


class Checkpoints:
    """The checkpoints of one workdir, which no other run may use meanwhile.

    Saves go on in a thread. Several processes call the same methods; process 0 works, all wait.
    """

    def __init__(self, workdir: Path, config: ConfigDict, store: TokenStore):
        """Locks the workdir and removes what an interrupted save left in it.

        Args:
            workdir: the run's folder.
            config: the run's configuration, kept in each checkpoint.
            store: what the run trains on; its identity is kept, too.

        Raises:
            UserError: if another run has the workdir, or it cannot be written.
        """
        self._folder = workdir / CHECKPOINTS
        self._config = config
        self._identity = identity(config, store)
        self._lock: WorkdirLock | None = None
        self._thread: threading.Thread | None = None
        self._saved = -1  # newest step on the disk, where several processes cannot all look
        self._failure: SaveFailed | NotFinite | None = None  # of that save, until it is raised
        on_process_zero(lambda: self._open(workdir), UserError)

    def _open(self, workdir: Path) -> int:
        try:
            self._lock = WorkdirLock(workdir)
            self._folder.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{workdir} cannot be written ({error}): mend that, or give the run another folder "
                f"(--config.workdir=...)."
            ) from error
        storage.clean(self._folder)
        return 0

    @property
    def latest_step(self) -> int | None:
        """Number of the newest checkpoint, None without one."""
        return max(storage.list_steps(self._folder), default=None)

    def save(self, state: TrainState, progress: Progress, val_loss: float | None = None) -> None:
        """Saves in the background; does nothing where the step has been saved before.

        Waits for the save before it. If that one failed and nobody asked (`wait`), it is only
        logged: this state is worth more.

        Args:
            state: its arrays are copied before this returns, so they may be donated afterwards.
            progress: goes into `meta`.
            val_loss: nats per token; a checkpoint without it is never the best.

        Raises:
            SaveFailed: if this very save fails, with several processes only: they wait for it.
            NotFinite: likewise.
        """
        started = time.monotonic()
        self._join()
        if (waited := time.monotonic() - started) > _SLOW:
            _log.warning("The disk is slow: waited %.0f s for the last checkpoint.", waited)
        if self._failure is not None:
            _log.error("%s", self._failure)
            self._failure = None
        step = int(state.step)
        latest = self.latest_step if jax.process_count() == 1 else self._saved
        if latest is not None and step <= latest:
            return
        items = {
            "params": state.params,
            "opt_state": state.opt_state,
            "rng": {"dropout_key": state.dropout_key},
        }
        if state.ema_params is not None:
            items[EMA] = state.ema_params
        items = host_copy(items)
        meta = {
            "step": step,
            "val_loss": None if val_loss is None else float(val_loss),
            "progress": dataclasses.asdict(progress),
            **self._identity,
        }
        if jax.process_count() > 1:
            self._saved = on_process_zero(
                lambda: self._write(step, items, meta), SaveFailed, UserError
            )
            return

        def work() -> None:
            try:
                self._write(step, items, meta)
            except (SaveFailed, NotFinite) as error:
                self._failure = error

        # A daemon: who leaves at once does not wait for it, and half a checkpoint has no name.
        self._thread = threading.Thread(target=work, name=f"save-{step}", daemon=True)
        self._thread.start()

    def _write(self, step: int, items: dict[str, Any], meta: dict[str, Any]) -> int:
        folder = self._folder / str(step)
        try:
            if self._lock is not None:
                self._lock.ensure()
            storage.write(folder, items, meta)
        except NotFinite:
            raise
        except Exception as error:  # Orbax and tensorstore raise nearly every kind
            raise SaveFailed(
                f"the checkpoint of step {step} could not be saved ({storage.summary(error)}"
                f"{_free_space(self._folder)}). Those before it are as they were."
            ) from error
        try:
            self._prune()
        except OSError as error:
            _log.warning("Old checkpoints could not be removed: %s", error)
        return step

    def _prune(self) -> None:
        """Removes what is neither among the latest nor the best, nor wanted to extend the run."""
        steps = storage.list_steps(self._folder)
        kept = set(steps[-self._config.checkpoint.keep_latest :])
        losses = {step: storage.val_loss(self._folder / str(step)) for step in steps}
        by_loss = sorted((loss, -step) for step, loss in losses.items() if loss is not None)
        kept |= {-step for _, step in by_loss[: self._config.checkpoint.keep_best]}
        optim = self._config.optim
        if optim.schedule == "wsd":  # from there the run can be made longer
            start = decay_start(optim, self._config.train.max_iters)
            kept.add(max((step for step in steps if step <= start), default=-1))
        for step in set(steps) - kept:
            storage.remove(self._folder / str(step))

    def restore(self, steps: StepFunctions) -> tuple[TrainState, Progress] | None:
        """Returns the newest good checkpoint's state, on the devices of `steps`; None without one.

        Damaged ones that are newer are moved to `checkpoints/damaged`, and that is logged.

        Raises:
            UserError: if the checkpoint belongs to another run (all differences are listed) or to
                another version of this program, or if all are damaged; nothing is changed then.
        """
        loaded: dict[int, Any] = {}

        def choose() -> int:
            damaged: dict[Path, str] = {}
            for step in reversed(storage.list_steps(self._folder)):
                folder = self._folder / str(step)
                try:
                    loaded[step] = storage.read(folder)
                except Damaged as error:
                    damaged[folder] = str(error)
                    continue
                self._check_identity(loaded[step][1], folder)
                for path, reason in damaged.items():
                    _log.error(
                        "%s is DAMAGED: %s. Set aside: %s", path, reason, storage.set_aside(path)
                    )
                return step
            if damaged:
                lines = "\n  - ".join(f"{path}: {reason}" for path, reason in damaged.items())
                raise UserError(
                    f"no checkpoint of this run is good:\n  - {lines}\nNothing was changed. To "
                    f"train anew, give another --config.workdir, or move {self._folder} away."
                )
            return _NONE

        step = on_process_zero(choose, UserError)
        if step == _NONE:
            return None
        folder = self._folder / str(step)
        arrays, meta = loaded[step] if step in loaded else storage.read(folder)
        shapes = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            steps.state_shapes,
            steps.state_shardings,
        )
        state = TrainState(
            step=jax.device_put(np.int32(step), shapes.step.sharding),
            params=storage.place(arrays["params"], shapes.params, folder),
            opt_state=storage.place(arrays["opt_state"], shapes.opt_state, folder),
            dropout_key=storage.place(arrays["rng"], {"dropout_key": shapes.dropout_key}, folder)[
                "dropout_key"
            ],
            # None has no leaves: an average here but not there, or the reverse, is told by `place`.
            ema_params=storage.place(arrays.get(EMA, {}), shapes.ema_params, folder),
        )
        self._saved = step
        _log.info("Continuing from %s.", folder)
        return state, Progress(**meta["progress"])

    def _check_identity(self, meta: dict[str, Any], folder: Path) -> None:
        if "store" not in meta:  # see save_params
            raise UserError(
                f"{folder} is an imported model, not a state of a run. Train from it in a workdir "
                f"of its own (--config.workdir=...), with --config.init_from={folder.parents[1]}."
            )
        if found := incompatibilities(meta, self._identity):
            raise UserError(
                f"{folder} belongs to another run and cannot be continued with this configuration:"
                "\n  - " + "\n  - ".join(found) + "\nGive this run a workdir of its own "
                "(--config.workdir=...), or restore those settings. Nothing was changed."
            )
        for text in changes(meta, self._identity):
            _log.info("Changed since %s: %s.", folder, text)

    @property
    def saving(self) -> bool:
        """Whether a save is under way in the background."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Returns when the last save is on the disk.

        Raises:
            SaveFailed: if it could not be; the state can be given to `save` again.
            NotFinite: if it must not be.
        """
        self._join()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def close(self) -> None:
        """Waits for the last save, logging what went wrong with it, and unlocks the workdir."""
        try:
            self.wait()
        except (SaveFailed, NotFinite) as error:
            _log.error("%s", error)
        if self._lock is not None:
            self._lock.release()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None


def save_params(workdir: Path, params: Any, **meta: Any) -> None:
    """Saves parameters alone as the checkpoint 0 of a new workdir: no run goes on from it."""
    folder = workdir / CHECKPOINTS
    folder.mkdir(parents=True)
    storage.write(
        folder / "0", {"params": host_copy(params)}, {"step": 0, "val_loss": None, **meta}
    )


def verify(workdir: Path) -> dict[int, str]:
    """Reads every checkpoint of a workdir; returns by step what is wrong with it, "" if nothing.

    Raises:
        UserError: if there is none.
    """
    found = {}
    for step in storage.list_steps(workdir / CHECKPOINTS):
        try:
            storage.read(workdir / CHECKPOINTS / str(step))
            found[step] = ""
        except Damaged as error:
            found[step] = str(error)
    if not found:
        raise UserError(f"{workdir} holds no finished checkpoint.")
    return found


def _free_space(folder: Path) -> str:
    try:
        return f"; {shutil.disk_usage(folder).free / 1e9:.1f} GB free"
    except OSError:
        return ""
