"""SIGTERM, SIGHUP and Ctrl-C as a wish to stop, which the loop grants after the current step."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

_log = logging.getLogger(__name__)

_WISHES = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StopSignal:
    """A context: a first signal only sets `received`, a Ctrl-C after it leaves the program at once.

    Python runs handlers between two bytecodes of the main thread, which may be minutes away while a
    step compiles or computes. So a thread of its own reads the signals from a socket that the
    interpreter writes to when they arrive, tells the user, and ends the process if need be. Leaving
    so is as safe as being killed, and that loses nothing but the steps since the last checkpoint.
    """

    def __init__(self, announce: Callable[[], str]) -> None:
        """Wishes nothing yet.

        Args:
            announce: returns what is about to happen, and how long it may take; it is called from
                another thread.
        """
        self.received = False
        self._announce = announce
        self._previous: dict[int, Any] = {}

    def _handle(self, _: int, __: FrameType | None) -> None:
        self.received = True

    def _watch(self) -> None:
        asked = False
        while number := self._reader.recv(1):
            if number[0] == 0:  # from __exit__
                return
            if number[0] not in _WISHES:
                continue
            if not asked:
                name = signal.Signals(number[0]).name
                _log.warning("%s: %s A Ctrl-C from now on leaves at once.", name, self._announce())
            elif number[0] == signal.SIGINT:
                _log.warning("Ctrl-C again: leaving at once, without a checkpoint.")
                os._exit(130)
            asked = True

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():  # Python allows no other
            self._reader, self._writer = socket.socketpair()
            self._writer.setblocking(False)
            self._previous_fd = signal.set_wakeup_fd(self._writer.fileno())
            self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)
            self._thread.start()
            for number in _WISHES:
                if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP on purpose
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous:
            for number, handler in self._previous.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._previous_fd)
            self._writer.send(b"\0")
            self._thread.join()
            self._reader.close()
            self._writer.close()
