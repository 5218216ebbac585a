"""Files that exist whole or not at all, even after a power failure."""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file; removes the temporary files that killed processes have left beside it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _remove_abandoned(path)
        with temporary.open("wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync(path.parent)


def free_bytes(folder: Path) -> int:
    """Returns what is free on the disk of a folder, which need not exist yet."""
    folder = folder.absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(there).free


@contextlib.contextmanager
def new_files(paths: Sequence[Path]) -> Iterator[Mapping[str, BinaryIO]]:
    """Opens files to write, by name; they are durable after the block, removed on an exception."""
    with contextlib.ExitStack() as on_error, contextlib.ExitStack() as stack:
        for path in paths:  # an incomplete file would occupy a full disk
            on_error.callback(path.unlink, missing_ok=True)
        files = {path.name: stack.enter_context(path.open("wb")) for path in paths}
        yield files
        for f in files.values():
            f.flush()
            os.fsync(f.fileno())
        on_error.pop_all()


def _remove_abandoned(path: Path) -> None:
    pattern = re.compile(rf"\.{re.escape(path.name)}\.(\d+)\.tmp")
    for other in path.parent.iterdir():
        if (match := pattern.fullmatch(other.name)) and not _is_running(int(match[1])):
            other.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # another user's, or no process number
        pass
    return True


def fsync(path: Path) -> None:
    """Makes a file, or the names in a folder (new, renamed, removed), survive a power failure."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def hash_json(value: Any) -> str:
    """Returns the sha256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def differences(saved: Any, current: Any, name: str = "") -> list[str]:
    """Returns a phrase for each leaf in which two JSON values differ."""
    if isinstance(saved, list) and isinstance(current, list):
        if len(saved) != len(current):
            return [f"{name}: {len(saved)} saved, {len(current)} now"]
        saved, current = dict(enumerate(saved)), dict(enumerate(current))
    if isinstance(saved, dict) and isinstance(current, dict):
        prefix = f"{name}." if name else ""
        texts = []
        for key in dict.fromkeys([*saved, *current]):
            texts += differences(saved.get(key), current.get(key), f"{prefix}{key}")
        return texts
    return [] if saved == current else [f"{name}: {saved} saved, {current} now"]
