"""Reads records from files, plain or compressed: what lies between separators, or a file whole."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from configs.errors import DataError
from configs.read import os_reason
from data_pipeline.sources.documents import MAX_DOCUMENT

BLOCK = 1 << 22  # bytes read at a time
_PIECE = 1 << 16  # bytes decompressed at a time: the most that is lost before damage
_CODECS = {".gz": "gzip", ".zst": "zstd"}


def is_compressed(path: Path) -> bool:
    """Returns whether the name of a file says that it is compressed."""
    return path.suffix in _CODECS


class HashingReader:
    """A file that is read once, whole, and its sha256."""

    closed = False  # pyarrow asks

    def __init__(self, file: BinaryIO, advance: Callable[[int], None]) -> None:
        """Calls `advance` with the number of bytes after each read."""
        self._file, self._advance, self._digest = file, advance, hashlib.sha256()

    def read(self, n: int = BLOCK) -> bytes:
        """Returns the next `n` bytes, fewer at the end."""
        data = self._file.read(n)
        self._digest.update(data)
        self._advance(len(data))
        return data

    def close(self) -> None:
        """Leaves the file to those who opened it: pyarrow closes what it has read."""

    def sha256(self) -> str:
        """Reads what is left; returns the digest of the file."""
        while self.read():
            pass
        return self._digest.hexdigest()


class BadCompression(ValueError):
    """Compressed data that is damaged, or ends early."""


def decompressed(file: BinaryIO | HashingReader, path: Path) -> Iterator[bytes]:
    """Yields the content of an open file in blocks; BadCompression: after what can be read."""
    if not is_compressed(path):
        while block := file.read(BLOCK):
            yield block
        return
    stream = pa.CompressedInputStream(pa.PythonFile(file, "r"), _CODECS[path.suffix])
    pieces, size = [], 0
    try:
        while piece := stream.read(_PIECE):
            pieces.append(piece)
            size += len(piece)
            if size >= BLOCK:
                yield b"".join(pieces)
                pieces, size = [], 0
    except (OSError, pa.ArrowException) as e:
        if getattr(e, "errno", None):  # of the disk
            raise
        yield b"".join(pieces)
        raise BadCompression(str(e)) from e
    yield b"".join(pieces)


def part_of(path: Path, offset: int, size: int) -> Iterator[bytes]:
    """Yields `size` bytes of a file's content from `offset` on, fewer where it ends before.

    A compressed file is read from its beginning.

    Raises:
      BadCompression: see `decompressed`.
      DataError: the file cannot be read.
    """
    try:
        with path.open("rb") as f:
            if not is_compressed(path):
                f.seek(offset)
                offset = 0
            for block in decompressed(f, path) if size else ():
                wanted = block[offset : offset + size]
                offset -= min(offset, len(block))
                size -= len(wanted)
                yield wanted
                if not size:
                    return
    except OSError as e:
        raise DataError(
            f"{path} cannot be read: {os_reason(e)}. Check the disk, and run again: finished parts "
            "are kept."
        ) from e


def split(blocks: Iterable[bytes], separator: bytes) -> Iterator[tuple[bytes | None, int]]:
    r"""Yields each record with its size, separator included; without a separator, one record.

    None stands for a record of over MAX_DOCUMENT bytes, of which no more are held in memory. What
    follows the last separator is a record unless it is empty.
    """
    pending, dropped = b"", 0
    overlap = max(len(separator) - 1, 0)  # the first bytes of a separator may end a block
    for block in blocks:
        *records, pending = (pending + block).split(separator) if separator else [pending + block]
        for record in records:
            size = dropped + len(record)
            yield record if size <= MAX_DOCUMENT else None, size + len(separator)
            dropped = 0
        if dropped + len(pending) > MAX_DOCUMENT:
            kept = pending[len(pending) - overlap :]
            dropped += len(pending) - len(kept)
            pending = kept
    if size := dropped + len(pending):
        yield pending if size <= MAX_DOCUMENT else None, size
