"""A lock file that the kernel frees when the process that holds it ends, however it ends."""

import contextlib
import datetime
import fcntl
import json
import logging
import os
import socket
import time
from pathlib import Path

from configs.errors import DataError, UserError
from configs.read import read_json

_log = logging.getLogger(__name__)
_MAX_RECORD = 4096  # bytes
_RECORD = {"pid": int, "host": str, "since": str}


class Held(UserError):
    """Another process holds the lock; the message names it."""


def is_held(path: Path) -> bool:
    """Returns whether a process has the lock, by its record; does not touch the file.

    Of a holder on another host only its end by itself is known.
    """
    try:
        record = read_json(path, _MAX_RECORD, _RECORD)
    except DataError:
        return False
    if record["host"] != socket.gethostname():
        return True
    try:
        os.kill(record["pid"], 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


class FileLock:
    """Holds a file from construction to `release`; the file names its holder in JSON.

    Not filelock's: it does not take the lock again where the file of a held one was removed, and
    its older versions empty the file at each try.
    """

    def __init__(self, path: Path, *, wait: bool = False):
        """Takes the lock, see `ensure`."""
        self._path, self._wait, self._fd = path, wait, -1
        self.ensure()

    def ensure(self) -> None:
        """Takes the lock unless it is held already; again where its file was removed. Cheap.

        Raises:
            Held: if another process holds it, and this one shall not wait.
            UserError: if the file system has no locks.
            OSError: if the file cannot be written.
        """
        if self._is_ours():
            return
        if self._fd >= 0:
            _log.warning("%s was removed while it was locked: locking it again.", self._path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        while not self._is_ours():  # the file may be removed between opening and locking it
            self.release()
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                self._flock(fd)
            except BaseException:
                os.close(fd)
                raise
            self._fd = fd
        if holder := self._holder():
            _log.warning("%s: %s ended without releasing it: taking over.", self._path, holder)
        now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        record = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, json.dumps(record).encode() + b"\n", 0)

    def _flock(self, fd: int) -> None:
        try:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            time.sleep(0.1)  # a holder that took it just now has written its record by then
            holder = self._holder() or "an unknown process"
            if not self._wait:
                raise Held(holder)
            _log.info("Waiting for %s, which holds %s.", holder, self._path)
            fcntl.flock(fd, fcntl.LOCK_EX)
        except OSError as error:  # ENOLCK or ENOSYS: NFS without its lock service, for example
            raise UserError(
                f"{self._path} cannot be locked ({error.strerror}), and without a lock two "
                f"processes would overwrite each other's files: use a folder on a local disk."
            ) from error

    def _is_ours(self) -> bool:
        """Returns whether the locked file is still the one at the path."""
        try:
            return self._fd >= 0 and os.path.samestat(os.fstat(self._fd), os.stat(self._path))
        except OSError:
            return False

    def _holder(self) -> str:
        """Returns the process that the file names; "" where it names none."""
        try:
            record = read_json(self._path, _MAX_RECORD, _RECORD)
        except DataError:
            return ""
        return f"process {record['pid']} on {record['host']}, since {record['since']}"

    def release(self) -> None:
        """Empties and unlocks the file; does nothing if it is not held."""
        if self._fd >= 0:
            try:
                os.ftruncate(self._fd, 0)
            except OSError as error:  # of a broken disk: nothing depends on it
                _log.warning("%s: %s", self._path, error)
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> "FileLock":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
