"""SIGTERM, SIGHUP and Ctrl-C as a stop request, which takes effect after the current step."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

_log = logging.getLogger(__name__)

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StopSignal:
    """A context in which the first signal sets `received` and a later Ctrl-C exits at once.

    Python runs handlers between two bytecodes of the main thread, which may be minutes away while a
    step compiles or computes. So a thread reads the signals from a socket that the interpreter
    writes to when they arrive, logs `announce()` (what happens next, and when) and ends the process
    if requested. That is as safe as SIGKILL: only the steps since the last checkpoint are lost.
    While `nothing_to_save` is True there are none, and the first signal ends the process.
    """

    def __init__(self, announce: Callable[[], str]) -> None:
        self.received = False
        self.nothing_to_save = False
        self._announce = announce
        self._previous: dict[int, Any] = {}

    def _handle(self, _: int, __: FrameType | None) -> None:
        self.received = True

    def _watch(self) -> None:
        requested = False
        while number := self._reader.recv(1):
            if number[0] == 0:  # from __exit__
                return
            if number[0] not in _STOP_SIGNALS:
                continue
            name = signal.Signals(number[0]).name
            if self.nothing_to_save:
                _log.warning("%s: exiting at once, since there is nothing to save yet.", name)
                os._exit(128 + number[0])
            if not requested:
                _log.warning("%s: %s Press Ctrl-C to exit at once.", name, self._announce())
            elif number[0] == signal.SIGINT:
                _log.warning("Ctrl-C again: exiting at once, without a checkpoint.")
                os._exit(130)
            requested = True

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():  # Python allows no other
            self._reader, self._writer = socket.socketpair()
            self._writer.setblocking(False)
            self._previous_fd = signal.set_wakeup_fd(self._writer.fileno())
            self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)
            self._thread.start()
            for number in _STOP_SIGNALS:
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
