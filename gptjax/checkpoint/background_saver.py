"""Saving that does not end the run: what fails is told and tried again, while training goes on."""

import logging
import time
from collections.abc import Callable

from configs.errors import UserError
from data_pipeline.progress import format_seconds
from gptjax.checkpoint.manager import Checkpoints, Progress
from gptjax.checkpoint.storage import summary
from gptjax.step.train_state import TrainState

_log = logging.getLogger(__name__)

_FIRST_DELAY, _LONGEST_DELAY = 10.0, 600.0  # seconds between tries; each doubles
_PATIENCE = 60.0  # seconds that training waits for the save before
_LAST_TRIES = 3  # of the save that ends a run
_LAST_DELAY = 2.0  # seconds between them


class Saver:
    """Saves states in the background and watches over them; `due` tells when to save once more."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        prepare: Callable[[], None],
        now: Callable[[], float] = time.monotonic,
    ):
        """Saves nothing yet.

        Args:
            checkpoints: where states go.
            prepare: called before each save; writes what belongs beside checkpoints.
            now: the clock, which tests replace.
        """
        self._checkpoints = checkpoints
        self._prepare = prepare
        self._now = now
        self._started: float | None = None  # when the save under way began
        self._step = 0  # of that save
        self._failures = 0  # in a row
        self._next_try: float | None = None  # None: no save is owed
        self._evaluated: tuple[int, float | None] = (0, None)  # last step with a val loss, and that
        self.seconds: float | None = None  # what the last save took until it was on the disk

    def save(self, state: TrainState, progress: Progress, val_loss: float | None = None) -> None:
        """Starts a save; if the one before is not finished in time, one is owed instead."""
        val_loss = self._val_loss(int(state.step), val_loss)
        give_up = self._now() + _PATIENCE
        while self._started is not None and self._checkpoints.saving:
            if self._now() > give_up:
                _log.warning(
                    "The disk is slow: the checkpoint of step %d is not written after %s. Training "
                    "goes on, and the next one is saved when it is.",
                    self._step,
                    format_seconds(self._now() - self._started),
                )
                self.request_save()
                return
            time.sleep(0.01)
        self._finish()
        self._started, self._step, self._next_try = self._now(), int(state.step), None
        try:
            self._prepare()
            self._checkpoints.save(state, progress, val_loss=val_loss)
        except UserError:
            raise
        except Exception as error:  # Orbax raises nearly every kind
            self._failed(error)

    def _val_loss(self, step: int, val_loss: float | None) -> float | None:
        """Returns the val loss of a step, also when a save that failed is tried again without."""
        if val_loss is not None:
            self._evaluated = (step, val_loss)
        return self._evaluated[1] if self._evaluated[0] == step else None

    def request_save(self) -> None:
        """Makes a save due, at once."""
        self._next_try = self._now()

    def due(self) -> bool:
        """Returns whether a save is owed, and can be made now; costs next to nothing."""
        if self._started is not None and not self._checkpoints.saving:
            self._finish()
        return (
            self._next_try is not None and self._started is None and self._now() >= self._next_try
        )

    def _finish(self) -> None:
        """Waits for the save under way, and notes how it went."""
        if self._started is None:
            return
        try:
            self._checkpoints.wait()
        except Exception as error:
            self._failed(error)
            return
        self.seconds = self._now() - self._started
        self._started = None
        if self._failures:
            _log.info("Saving works again: the checkpoint of step %d is on the disk.", self._step)
        self._failures = 0

    def _failed(self, error: Exception) -> None:
        self._started = None
        delay = min(_FIRST_DELAY * 2**self._failures, _LONGEST_DELAY)
        self._failures += 1
        self._next_try = self._now() + delay
        _log.error(
            "The checkpoint of step %d could not be saved (%s). Training goes on, and earlier "
            "checkpoints are untouched; the next try is in %s.",
            self._step,
            summary(error),
            format_seconds(delay),
        )

    def finish(self, state: TrainState, progress: Progress) -> None:
        """Saves the last state and waits until it is on the disk.

        Raises:
            UserError: if that fails again and again.
        """
        self._finish()
        step = int(state.step)
        for tries_left in reversed(range(_LAST_TRIES)):
            try:
                self._prepare()
                self._checkpoints.save(state, progress, val_loss=self._val_loss(step, None))
                self._checkpoints.wait()
                return
            except UserError:
                raise
            except Exception as error:
                _log.error("The last state could not be saved (%s).", summary(error))
                if not tries_left:
                    newest = self._checkpoints.latest_step
                    there = "none" if newest is None else f"that of step {newest}"
                    raise UserError(
                        f"the state of step {step} could not be saved, {_LAST_TRIES} times "
                        f"({summary(error)}). The newest good checkpoint is {there}: mend the "
                        f"disk or the folder and run the same command again, which continues there."
                    ) from error
                time.sleep(_LAST_DELAY)
