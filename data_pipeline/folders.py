"""A folder of files, on a disk or in an object store, in which each file is whole or absent.

`s3://bucket/path`, `gs://...` and the other addresses of fsspec are object stores; the rest are
paths. An object store has no renames and no locks, so nothing here needs them.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from configs.errors import DataError, UserError
from configs.extras import imports_of_extra
from data_pipeline.files import fsync, write_atomically

R = TypeVar("R")


class Folder(Protocol):
    """What both kinds can do; names may have slashes."""

    address: str

    def names(self, below: str) -> set[str]:
        """Returns the names of the files in the folder `below` this one."""

    def read(self, name: str) -> bytes | None:
        """Returns a file; None: there is none."""

    def write(self, name: str, data: bytes) -> None:
        """Writes a file."""

    def upload(self, path: Path, name: str) -> None:
        """Copies a local file into the folder."""

    def download(self, name: str, path: Path) -> None:
        """Copies a file to a local path; DataError: there is none."""

    def remove(self) -> None:
        """Removes the folder and all below it."""


def is_address(place: str) -> bool:
    """Returns whether this is the address of something elsewhere, and no path."""
    return "://" in place


def open_folder(place: str) -> Folder:
    """Returns the folder at a path or an address, which need not exist.

    Raises:
      UserError: the package for such addresses is missing.
    """
    return _ObjectStore(place) if is_address(place) else _Disk(place)


def fsspec_of(address: str) -> tuple[Any, str]:
    """Returns the file system of fsspec that an address is in, and the path there.

    Raises:
      UserError: the package for such addresses is missing.
    """
    with imports_of_extra("remote"):
        import fsspec

        try:
            system, path = fsspec.core.url_to_fs(address)
        except ValueError as e:
            raise UserError(f"{address}: this address cannot be used: {e}") from e
    return system, path


class _Disk:
    def __init__(self, place: str) -> None:
        self.address = place
        self._root = Path(place)

    def names(self, below: str) -> set[str]:
        folder = self._root / below
        return {path.name for path in folder.glob("[!.]*")} if folder.is_dir() else set()

    def read(self, name: str) -> bytes | None:
        try:
            return (self._root / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        write_atomically(self._make(name), data)

    def upload(self, path: Path, name: str) -> None:
        target = self._make(name)
        temporary = target.with_name(f".{target.name}.{path.parent.name}.tmp")
        try:
            shutil.copyfile(path, temporary)
            fsync(temporary)
            temporary.rename(target)
        finally:
            temporary.unlink(missing_ok=True)
        fsync(target.parent)

    def download(self, name: str, path: Path) -> None:
        try:
            shutil.copyfile(self._root / name, path)
        except FileNotFoundError as e:
            raise DataError(f"{self._root / name}: the file is missing.") from e

    def remove(self) -> None:
        shutil.rmtree(self._root, ignore_errors=True)

    def _make(self, name: str) -> Path:
        path = self._root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


class _ObjectStore:
    def __init__(self, place: str) -> None:
        self.address = place.rstrip("/")
        self._system, self._root = fsspec_of(self.address)

    def names(self, below: str) -> set[str]:
        self._system.invalidate_cache()
        try:
            found = self._call(self._system.ls, self._at(below), detail=False)
        except FileNotFoundError:
            return set()
        return {name.rstrip("/").rpartition("/")[2] for name in found}

    def read(self, name: str) -> bytes | None:
        try:
            data: bytes = self._call(self._system.cat_file, self._at(name))
        except FileNotFoundError:
            return None
        return data

    def write(self, name: str, data: bytes) -> None:
        self._call(self._system.pipe_file, self._at(name), data)

    def upload(self, path: Path, name: str) -> None:
        self._call(self._system.put_file, str(path), self._at(name))

    def download(self, name: str, path: Path) -> None:
        try:
            self._call(self._system.get_file, self._at(name), str(path))
        except FileNotFoundError as e:
            raise DataError(f"{self.address}/{name}: the file is missing.") from e

    def remove(self) -> None:
        try:
            self._call(self._system.rm, self._root, recursive=True)
        except FileNotFoundError:
            pass

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}".rstrip("/")

    def _call(self, function: Callable[..., R], *arguments: Any, **options: Any) -> R:
        """Returns what the file system does; its own errors, which are many, become DataErrors."""
        try:
            return function(*arguments, **options)
        except FileNotFoundError:
            raise
        except Exception as e:
            raise DataError(
                f"{self.address}: the object store failed ({type(e).__name__}: {e}). Check the "
                "address, the credentials and the network, and run again: what was finished is "
                "kept."
            ) from e
