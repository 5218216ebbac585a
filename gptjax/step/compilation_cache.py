"""Compiled programs on disk: a resumed run starts at once, with the same program."""

import logging
import os
import zlib
from pathlib import Path

import jax

_log = logging.getLogger(__name__)


def keep_compiled(folder: str) -> None:
    """Makes JAX cache compiled programs in `folder`; "" changes nothing.

    JAX_COMPILATION_CACHE_DIR in the environment overrides `folder`. On a GPU, where the compiler
    times kernels and chooses, the cache also makes a resumed run compute the same bits. If `folder`
    cannot be written, JAX warns and compiles every time.
    """
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR") or folder
    if not folder:
        return
    _remove_incomplete(Path(folder))
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _remove_incomplete(folder: Path) -> None:
    """Removes entries whose writer was killed: JAX neither uses nor replaces them."""
    for file in folder.glob("*-cache"):
        try:
            data = file.read_bytes()
            complete = not data.startswith(b"\x78") or _is_whole(data)  # else not zlib's
            if not data or not complete:
                _log.info("Removing %s: it is incomplete.", file)
                file.unlink(missing_ok=True)
        except OSError as error:
            _log.warning("%s: %s", file, error.strerror)


def _is_whole(data: bytes) -> bool:
    try:
        zlib.decompress(data)
    except zlib.error:
        return False
    return True
