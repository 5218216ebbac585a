"""One run at a time in a workdir: a lock that the kernel frees when its process ends, however."""

import datetime
import fcntl
import json
import logging
import os
import socket
import time
from pathlib import Path

from configs.errors import UserError
from gptjax.common.workdir import LOCK

_log = logging.getLogger(__name__)


class WorkdirLock:
    """Holds `workdir/lock` from its making until `release`, or until the process dies.

    The file says who holds it. It stays when the lock is gone: empty after a `release`, with the
    last holder's lines after a death.
    """

    def __init__(self, workdir: Path):
        """Takes the lock; a process that died left it to be taken.

        Raises:
            UserError: if another process holds it: the message says which.
        """
        self._path = workdir / LOCK
        self._fd = -1
        self.ensure()

    def ensure(self) -> None:
        """Takes the lock again where its file was removed, as with the whole workdir; cheap.

        Raises:
            UserError: if another process holds it by now.
            OSError: if the file cannot be made.
        """
        if self._is_ours():
            return
        if self._fd >= 0:
            _log.warning("%s was removed during the run: it is made again.", self._path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        while not self._is_ours():  # what was opened may be removed before it is locked
            self.release()
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(self._fd)
                self._fd = -1
                raise UserError(self._held()) from None
            except OSError as error:
                _log.warning(
                    "%s cannot be locked (%s): see yourself that no second run uses this workdir.",
                    self._path,
                    error,
                )
                break
        if left := _read(self._path):
            _log.warning("The last run here (%s) ended without a goodbye: taking over.", left)
        now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, json.dumps(holder).encode() + b"\n", 0)

    def _is_ours(self) -> bool:
        """Says whether the locked file is the one that bears the name."""
        try:
            return self._fd >= 0 and os.path.samestat(os.fstat(self._fd), os.stat(self._path))
        except OSError:
            return False

    def _held(self) -> str:
        time.sleep(0.1)  # whoever took it just now has signed by then
        return (
            f"{self._path.parent} is in use by another run ({_read(self._path) or 'unknown'}): two "
            f"would overwrite each other's files. Wait for it, stop it with kill -TERM and its "
            f"process id, or give this run a workdir of its own (--config.workdir=...)."
        )

    def release(self) -> None:
        """Gives the lock up; does nothing the second time."""
        if self._fd >= 0:
            try:
                os.ftruncate(self._fd, 0)
            except OSError as error:  # a full disk or one that is gone: nothing depends on it
                _log.warning("%s: %s", self._path, error)
            os.close(self._fd)
            self._fd = -1


def _read(path: Path) -> str:
    """Returns who signed the file, for a message; "" where nobody did."""
    try:
        holder = json.loads(path.read_text())
        return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
