"""A store in an object store, used through a folder on a local disk that has some of its files.

The folder has the manifest and the tokenizer; the files of shards come when they are needed and go
in the order of their last use. A file that is removed while it is mapped can still be read.
"""

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent import futures
from pathlib import Path
from typing import Any

from configs.errors import DataError
from configs.read import read_json
from data_pipeline.files import write_atomically
from data_pipeline.folders import open_folder

REMOTE = "remote.json"  # makes a folder a mirror
_MAX_REMOTE = 4096  # bytes
_DOWNLOADS = 4  # files at a time


def make(address: str, local_dir: Path, max_bytes: int, names: Iterable[str]) -> Path:
    """Makes or updates the mirror of the store at `address`; returns its folder.

    `names` are the files that are always in it, the manifest first. `max_bytes` bounds those of all
    mirrors in `local_dir` that are not.
    """
    store = open_folder(address)
    folder = local_dir / address.rpartition("/")[2]
    manifest, *others = names
    data = store.read(manifest)
    if data is None:
        raise DataError(f"{address}/{manifest}: the file is missing: there is no store.")
    path = folder / manifest
    if path.exists() and path.read_bytes() != data:  # of a store that was made again
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    remote = {"address": address, "max_bytes": max_bytes}
    write_atomically(folder / REMOTE, json.dumps(remote).encode())
    for name in others:
        write_atomically(folder / name, store.read(name) or b"")
    write_atomically(path, data)
    return folder


class Mirror:
    """The files of a store at an address."""

    def __init__(
        self,
        folder: Path,
        files: Mapping[str, Mapping[str, Any]],
        check: Callable[[str, Path], None],
    ) -> None:
        """Takes the `files` of the manifest, and what raises DataError for a bad download."""
        remote = read_json(folder / REMOTE, _MAX_REMOTE, {"address": str, "max_bytes": int})
        self._folder, self._files, self._check = folder, files, check
        self._max_bytes: int = remote["max_bytes"]
        self._store = open_folder(remote["address"])
        self._lock = threading.Lock()

    def path(self, name: str) -> Path:
        """Returns the local path of a file, which is downloaded where it is not there."""
        self.fetch([name])
        return self._folder / name

    def fetch(self, names: Iterable[str]) -> None:
        """Downloads files that are not there, and makes room for them.

        Raises:
          DataError: one is missing or damaged, or they need more than the bound.
        """
        with self._lock:
            names = set(names)
            missing = {name for name in names if not self._touch(name)}
            if missing:
                self._make_room(names, sum(self._files[n]["size_bytes"] for n in missing))
                with futures.ThreadPoolExecutor(_DOWNLOADS) as pool:
                    list(pool.map(self._download, missing))

    def _touch(self, name: str) -> bool:
        """Returns whether a file is there, and is then the latest one used."""
        try:
            os.utime(self._folder / name)
        except FileNotFoundError:
            return False
        return True

    def _make_room(self, names: set[str], n_bytes: int) -> None:
        """Removes the files that were not used for longest, of all mirrors, but none of `names`."""
        wanted = {self._folder / name for name in names}
        present = []
        for remote in self._folder.parent.glob(f"*/{REMOTE}"):
            for path in remote.parent.glob("[0-9]*"):
                stat = path.stat()
                present.append((stat.st_mtime_ns, stat.st_size, path))
        excess = n_bytes + sum(size for _, size, _ in present) - self._max_bytes
        for _, size, path in sorted(present):
            if excess > 0 and path not in wanted:
                path.unlink(missing_ok=True)
                excess -= size
        if excess > 0:
            raise DataError(
                f"{self._folder}: {len(names)} files of {self._store.address} that are needed at "
                f"the same time take {excess:,} bytes more than data.cache_bytes = "
                f"{self._max_bytes:,} allows. Raise it: two groups of shards should fit."
            )

    def _download(self, name: str) -> None:
        temporary = self._folder / f".{name}.{os.getpid()}.tmp"
        try:
            self._store.download(name, temporary)
            self._check(name, temporary)
            temporary.rename(self._folder / name)
        finally:
            temporary.unlink(missing_ok=True)
