"""Compiled programs on disk: a resumed run starts at once, with the same program."""

import contextlib
import logging
import os
import sys
import time
from pathlib import Path

import jax

_log = logging.getLogger(__name__)

_MAX_BYTES = 2 << 30  # of all entries; a train step has some 10 MB
_CLOCKS = 60.0  # seconds that the clock of the file system may be behind


def keep_compiled(folder: str) -> None:
    """Makes JAX cache compiled programs in `folder`; "" changes nothing.

    JAX_COMPILATION_CACHE_DIR in the environment overrides `folder`. On a GPU, where the compiler
    times kernels and chooses, the cache also keeps the choice for a resumed run. At most 2 GiB are
    kept. If `folder` cannot be written, JAX warns and compiles every time.
    """
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR") or folder
    if not folder:
        return
    if Path(folder).is_dir():
        _remove_oldest(Path(folder), _MAX_BYTES)  # first: to read a file is to use it
        _remove_unreadable(Path(folder))
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _remove_unreadable(folder: Path) -> None:
    """Removes entries whose writer was killed, and those of a Python with another compression.

    JAX neither uses nor replaces them. Only those written since the last check by this version of
    Python, which is the time of the file `checked-3.x`, are read.
    """
    checked, now = folder / "checked-{}.{}".format(*sys.version_info), time.time()
    last = checked.stat().st_mtime if checked.exists() else 0.0
    for file in folder.glob("*-cache"):
        try:
            if file.stat().st_mtime < last - _CLOCKS:
                continue
            if not _is_readable(file.read_bytes()):
                _log.info("Removing %s: JAX cannot read it.", file)
                file.unlink(missing_ok=True)
        except OSError as error:
            _log.warning("%s: %s", file, error.strerror)
    with contextlib.suppress(OSError):  # a folder that cannot be written is read again next time
        checked.touch()
        os.utime(checked, (now, now))


def _remove_oldest(folder: Path, max_bytes: int) -> None:
    """Removes the entries that were not used for the longest time until `max_bytes` are left.

    Not by JAX's own limit, which needs another package and fails on entries from before it was set.
    """
    entries = []
    for file in folder.glob("*-cache"):
        with contextlib.suppress(OSError):  # another process may remove it
            status = file.stat()
            entries.append((max(status.st_atime, status.st_mtime), status.st_size, file))
    total = 0
    for _, size, file in sorted(entries, reverse=True):
        total += size
        if total > max_bytes:
            with contextlib.suppress(OSError):
                file.unlink()


def _is_readable(data: bytes) -> bool:
    """Returns whether JAX can decompress an entry: by zstd, which Python 3.14 has, else by zlib."""
    from jax._src.compilation_cache import decompress_executable  # private: imported only if needed

    try:
        decompress_executable(data)
    except Exception:  # zlib's, zstd's or zstandard's
        return False
    return True
