"""SIGTERM and Ctrl-C as a wish to stop, which the loop grants after the current step."""

import logging
import signal
import threading
from types import FrameType
from typing import Any

_log = logging.getLogger(__name__)


class StopSignal:
    """A context: SIGTERM and a first Ctrl-C only set `received`, a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        """Wishes nothing yet."""
        self.received = False
        self._previous: dict[int, Any] = {}

    def _handle(self, number: int, _: FrameType | None) -> None:
        _log.warning(
            "%s: stopping after this step, with a checkpoint.", signal.Signals(number).name
        )
        self.received = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():  # Python allows no other
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
