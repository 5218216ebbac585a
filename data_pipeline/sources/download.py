"""Downloads files that can be read by ranges: resumed where it stopped, and verified.

Beside a file FOLDER/NAME are FOLDER/.download/NAME.json, what is known of it, and until it is
whole FOLDER/.download/NAME.part. The sha256 in the former marks the file as complete.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from configs.errors import DataError
from configs.read import MIB, read_json
from data_pipeline.files import fsync, write_atomically
from data_pipeline.progress import BatchProgress
from data_pipeline.sources.parquet_footer import first_line

log = logging.getLogger(__name__)

BLOCK = 16 * MIB  # of a request: the most that a lost connection costs
ATTEMPTS = 6  # without progress
FIRST_PAUSE = 1.0  # seconds after the first failure; twice as long after each other
_VERSION = """
    ETag etag blob_id generation md5Hash xet_hash Last-Modified LastModified mtime created
""".split()
WEB = ("http", "https")
_SPARE = 256 * MIB  # of the disk, left free
_SCHEMA = {"path": str, "size": int, "version": str, "sha256": str}


class Remote(NamedTuple):
    """A file elsewhere."""

    name: str  # to store it under
    fs: Any  # of fsspec
    path: str  # there
    size: int
    version: str  # of the content: a download is resumed only where it is the same
    digest: str  # published, as `algorithm:hex`, or ""


def look_up(fs: Any, path: str) -> list[dict[str, Any]]:
    """Returns what fsspec says of a file, or of each entry of a folder.

    Not by `fs.info`, whose entries are not always those of a listing; but that of a web page is
    made of its links.
    """
    infos: list[dict[str, Any]]
    infos = [fs.info(path)] if protocol_of(fs) in WEB else fs.ls(path, detail=True)
    return infos


def protocol_of(fs: Any) -> str:
    """Returns the first name of the protocol of a file system."""
    return str(fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0])


def version_of(info: Mapping[str, Any]) -> str:
    """Returns what tells versions of a file apart, of what fsspec says of it."""
    return next((f"{key} {info[key]}" for key in _VERSION if info.get(key)), "")


def is_complete(folder: Path, name: str) -> bool:
    """Returns whether a file was downloaded whole."""
    try:
        state = read_json(_state_file(folder, name), MIB, _SCHEMA)
        return bool(state["sha256"]) and (folder / name).stat().st_size == state["size"]
    except (DataError, OSError):
        return False


def download_all(files: Sequence[Remote], folder: Path) -> None:
    """Downloads what is missing.

    Raises:
      DataError: the connection fails, a file changes meanwhile or arrives damaged, or the disk has
        no room; what has arrived is kept.
    """
    waiting = [f for f in files if not (_is_same(folder, f) and is_complete(folder, f.name))]
    for file in waiting:
        _begin(folder, file)
    left = {file: file.size - _part(folder, file).stat().st_size for file in waiting}
    total, missing = sum(file.size for file in files), sum(left.values())
    free = shutil.disk_usage(folder.parent).free
    if missing + _SPARE > free:
        raise DataError(
            f"{folder}: the download needs {missing:,} bytes, and {free:,} are free on "
            "this disk. Free some space, or name another disk with --config.data.cache_dir=..."
        )
    n_blocks = sum(-(-n // BLOCK) for n in left.values())
    done = total - missing
    with BatchProgress("downloading", "bytes", total, n_blocks, done=done) as bar:
        for file in waiting:
            _download(file, folder, bar)


def _begin(folder: Path, file: Remote) -> None:
    """Makes the partial file and its state; an older part of another version is discarded."""
    part = _part(folder, file)
    part.parent.mkdir(parents=True, exist_ok=True)
    if not _is_same(folder, file):
        if part.exists():
            log.warning("%s has changed since its download began: it begins again.", file.path)
        part.unlink(missing_ok=True)
        _write_state(folder, file, "")
    with part.open("ab") as f:
        if f.tell() > file.size:
            f.truncate(0)


def _is_same(folder: Path, file: Remote) -> bool:
    """Returns whether what is here is of the version that is there."""
    try:
        state = read_json(_state_file(folder, file.name), MIB, _SCHEMA)
    except DataError:
        return False
    keys = ("path", "size", "version")
    return [state[key] for key in keys] == [getattr(file, key) for key in keys]


def _download(file: Remote, folder: Path, bar: BatchProgress) -> None:
    part = _part(folder, file)
    with part.open("ab") as f:
        failures = 0
        while (done := f.tell()) < file.size:
            stop = min(done + BLOCK, file.size)
            try:
                data = file.fs.cat_file(file.path, start=done, end=stop)
                if not data:
                    raise EOFError("it sent nothing")
            except Exception as error:  # of whatever library is behind fsspec
                failures += 1
                _pause(file, error, failures, done)
                continue
            if len(data) > stop - done:
                raise DataError(
                    f"{file.path}: the server sends the whole file where a part is asked for, so "
                    "that no download can be resumed: download it, and name the file here."
                )
            f.write(data)
            failures = 0
            if f.tell() == stop:
                bar.advance(len(data), len(data))
        f.flush()
        os.fsync(f.fileno())
    _verify(file, part)
    target = folder / file.name
    target.parent.mkdir(parents=True, exist_ok=True)
    part.replace(target)
    fsync(target.parent)
    _write_state(folder, file, _digest(target, "sha256"))


def _pause(file: Remote, error: Exception, failures: int, done: int) -> None:
    """Waits before another attempt; DataError: there is none."""
    if isinstance(error, FileNotFoundError | PermissionError) or failures == ATTEMPTS:
        raise _stopped(file, error, done) from error
    seconds = FIRST_PAUSE * 2 ** (failures - 1)
    log.warning(
        "%s: the connection failed at byte %s (%s): another attempt in %.0f s",
        *(file.path, f"{done:,}", first_line(error), seconds),
    )
    time.sleep(seconds)


def _stopped(file: Remote, error: Exception, done: int) -> DataError:
    return DataError(
        f"{file.path}: the download stopped at byte {done:,} of {file.size:,} "
        f"({first_line(error)}). What has arrived is kept: run again to continue."
    )


def _verify(file: Remote, part: Path) -> None:
    """Checks a file that has arrived; DataError: it changed meanwhile, or is damaged."""
    try:
        file.fs.invalidate_cache()
        version = version_of(look_up(file.fs, file.path)[0])
    except Exception as error:
        raise _stopped(file, error, file.size) from error
    if version != file.version:
        part.unlink()
        raise DataError(f"{file.path}: the file changed while it was downloaded: run again.")
    algorithm, _, expected = file.digest.partition(":")
    if not expected:
        return
    if (digest := _digest(part, algorithm)) != expected:
        part.unlink()
        raise DataError(
            f"{file.path}: what has arrived is damaged: its {algorithm} is {digest}, and "
            f"{expected} is published. It was discarded: run again."
        )


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, algorithm).hexdigest()


def _part(folder: Path, file: Remote) -> Path:
    return folder / ".download" / f"{file.name}.part"


def _state_file(folder: Path, name: str) -> Path:
    return folder / ".download" / f"{name}.json"


def _write_state(folder: Path, file: Remote, sha256: str) -> None:
    state = {"path": file.path, "size": file.size, "version": file.version, "sha256": sha256}
    write_atomically(_state_file(folder, file.name), json.dumps(state).encode())
