"""Looks through files of records once: their hash, where chunks begin, what is wrong with them.

That is kept beside the stores, so that it is done once for a (path, size, time of change).
"""

import contextlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from configs.errors import DataError
from configs.read import MIB, os_reason, read_json
from data_pipeline.files import hash_json, write_atomically
from data_pipeline.progress import BatchProgress
from data_pipeline.sources.documents import MAX_ROWS, FileState
from data_pipeline.sources.formats import (
    BOM,
    TOO_LONG,
    Broken,
    Format,
    MissingColumn,
    Unusable,
    decode,
)
from data_pipeline.sources.records import (
    BLOCK,
    BadCompression,
    HashingReader,
    decompressed,
    is_compressed,
    split,
)

CHUNK_BYTES = 4_000_000  # of content: a part of the store, about a second of work
_MAX_COMPRESSED_CHUNKS = 16  # of a file: what is before a chunk is decompressed to reach it
_SHOW_BYTES = 1 << 30  # from here on, progress is shown
_VERSION = 1  # raise it when the same files would be cut otherwise
_MAX_CACHE = 256 * MIB
_SCHEMA = {"files": [{"sha256": str, "chunks": [[int, int, int, int]], "problem": str, "end": str}]}


class Inspection(NamedTuple):
    """What one look through a file has found."""

    sha256: str
    chunks: list[list[int]]  # [first byte of the content, bytes, first row, rows]
    problem: str  # the first record that is not as it should be, and why; "": none
    end: str  # why the content ends before the file does; "": it does not


def inspect_all(states: Sequence[FileState], format: Format, cache: Path) -> list[Inspection]:
    """Returns the inspection of each file; from the folder `cache` where it was done before.

    Raises:
      DataError: a file cannot be read, or changed meanwhile.
    """
    stated = [[str(path.absolute()), *state] for path, *state in states]
    key = hash_json([_VERSION, type(format).__name__, format.identity(), CHUNK_BYTES, stated])
    kept = cache / f"{key}.json"
    if kept.exists():
        try:
            files = read_json(kept, _MAX_CACHE, _SCHEMA)["files"]
            return [Inspection(**file) for _, file in zip(states, files, strict=True)]
        except (ValueError, TypeError):  # damaged: look again
            pass
    n_blocks = sum(state.size // BLOCK + 1 for state in states)
    total = sum(state.size for state in states)
    name = "looking through the source" if total >= _SHOW_BYTES else None
    with BatchProgress(name, "bytes", total, n_blocks) as bar:
        found = [inspect(state, format, bar) for state in states]
    content = {"files": [inspection._asdict() for inspection in found]}
    with contextlib.suppress(OSError):  # it only saves time
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, json.dumps(content).encode())
    return found


def inspect(state: FileState, format: Format, bar: BatchProgress) -> Inspection:
    """Looks through one file."""

    def advance(n: int) -> None:
        if n:
            bar.advance(n, n)

    chunks: list[list[int]] = []
    offset = size = first_row = rows = 0
    problem = end = ""
    try:
        with state.path.open("rb") as f:
            reader = HashingReader(f, advance)
            try:
                for record, n_bytes in split(decompressed(reader, state.path), format.separator):
                    problem = problem or _problem(state.path, record, rows, format)
                    rows, size = rows + 1, size + n_bytes
                    if size >= CHUNK_BYTES:
                        chunks.append([offset, size, first_row, rows - first_row])
                        offset, size, first_row = offset + size, 0, rows
            except BadCompression as e:
                end = f"after {format.unit} {rows:,}: the compressed data is damaged ({e})"
            sha256 = reader.sha256()
        if FileState.of(state.path) != state:
            raise DataError(f"{state.path}: the file changed while it was read. Run again.")
    except OSError as e:
        raise DataError(f"{state.path}: it cannot be read: {os_reason(e)}.") from e
    if rows > MAX_ROWS:
        raise DataError(
            f"{state.path}: it has {rows:,} rows, over {MAX_ROWS:,}: cut it into files."
        )
    if size or (end and not chunks):  # something has to say that it ends
        chunks.append([offset, size, first_row, rows - first_row])
    if is_compressed(state.path):
        chunks = _merged(chunks, math.ceil(len(chunks) / _MAX_COMPRESSED_CHUNKS))
    return Inspection(sha256, chunks, problem or end, end)


def _problem(path: Path, record: bytes | None, row: int, format: Format) -> str:
    """Returns what is wrong with a record, with its place, or ""; of the first one, more.

    Raises:
      DataError: the first record lacks a column.
    """
    place = f"{format.unit} {row + 1:,}"
    try:
        if record is None:
            raise Broken(TOO_LONG)
        if not row:
            record = record.removeprefix(BOM)
            format.document(record)
        decode(record)
        reason = format.problem(record)
    except MissingColumn as e:
        raise DataError(f"{path}: {place}: {e}. Name another one.") from e
    except Broken as e:
        reason = str(e)
    except Unusable as e:
        reason = ""
        if isinstance(e.__cause__, UnicodeDecodeError):
            reason = f"byte {e.__cause__.start + 1:,} is no UTF-8"
    return reason and f"{place}: {reason}"


def _merged(chunks: list[list[int]], n: int) -> list[list[int]]:
    """Puts `n` chunks at a time together."""
    groups = [chunks[i : i + n] for i in range(0, len(chunks), n or 1)]
    return [
        [group[0][0], sum(c[1] for c in group), group[0][2], sum(c[3] for c in group)]
        for group in groups
    ]
