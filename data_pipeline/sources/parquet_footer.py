"""Finds parquet files and checks their footers, which say what the file holds and where."""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from configs.errors import DataError
from data_pipeline import child
from data_pipeline.sources.known_files import FINEWEB, expected_size

MAGIC = b"PAR1"  # the first and the last four bytes of every parquet file
UNREADABLE = (pa.ArrowException, OSError, ValueError)  # what pyarrow raises
_MAX_DOCUMENT = 1 << 27  # bytes, on average: reading one takes four times that
_MAX_ROWS = 1 << 28  # of a file: their lengths, kept in memory, are then 3 GB
_MAX_FOOTER = 1 << 27  # bytes: 100,000 row groups

_DOWNLOAD = (
    "Download one file of FineWeb, https://huggingface.co/datasets/HuggingFaceFW/fineweb (for "
    f"example {FINEWEB.path}, {FINEWEB.size_bytes / 1e9:.1f} GB, or one of sample/10BT), save it "
    "as data/fineweb_one_shard/000_00000.parquet, or name another file or folder with "
    "--config.data.source=..."
)


class NoSource(DataError):
    """There is no parquet file at data.source."""


@dataclasses.dataclass(frozen=True)
class ShardInfo:
    """The metadata of a parquet file, from its footer alone."""

    path: Path
    size_bytes: int
    mtime_ns: int
    footer_sha256: str  # covers size, offset and statistics of every column chunk
    row_group_sizes: tuple[int, ...]  # documents in each row group
    text_bytes: tuple[int, ...]  # uncompressed size of `text` in each row group (an estimate)

    @property
    def n_documents(self) -> int:
        """Rows of the file, unusable ones included."""
        return sum(self.row_group_sizes)

    @property
    def n_row_groups(self) -> int:
        """Row groups of the file."""
        return len(self.row_group_sizes)

    def identity(self) -> dict[str, Any]:
        """Returns what identifies the content in a store's manifest, whatever its folder."""
        return {
            "file": self.path.name,
            "size_bytes": self.size_bytes,
            "documents": self.n_documents,
            "row_groups": self.n_row_groups,
            "footer_sha256": self.footer_sha256,
        }


def find_shards(source: str | Path) -> list[Path]:
    """Returns the parquet files of `source` (a file or a folder) by name; NoSource: none."""
    path = Path(source)
    if os.path.isfile(path):  # False where a disk is gone, which Path's may raise
        return [path]
    if not os.path.exists(path):
        raise NoSource(f"data.source: there is no file or folder {path}. {_DOWNLOAD}")
    shards = sorted(p for p in path.glob("[!.]*.parquet") if p.is_file())
    if not shards:
        raise NoSource(f"data.source: the folder {path} holds no *.parquet file. {_DOWNLOAD}")
    return shards


class _Footer(NamedTuple):
    """A footer to read: the first three fields are of its file."""

    path: Path
    mtime_ns: int
    size: int
    sha256: str


_seen: dict[tuple[int, str], ShardInfo] = {}  # what footers say, by size of the file and sha256


def inspect(path: str | Path) -> ShardInfo:
    """Checks, from its footer alone, that a file is complete and has the columns `id` and `text`.

    Raises:
      DataError: truncated or damaged file, no rows, or a column missing or of a wrong type.
    """
    return inspect_all([Path(path)])[0]


def inspect_all(paths: Sequence[Path]) -> list[ShardInfo]:
    """Does the same for several files; footers not seen before are read in a child process.

    There is no other protection from files on which pyarrow ends the process, such as one with an
    encrypted column.
    """
    footers = []
    for path in paths:
        stat = path.stat()
        sha256 = _check_frame(path, stat.st_size)
        footers.append(_Footer(path, stat.st_mtime_ns, stat.st_size, sha256))
    new = {footer[2:]: footer for footer in footers if footer[2:] not in _seen}
    _seen.update(zip(new, _in_child(list(new.values())), strict=True))
    return [
        dataclasses.replace(_seen[footer[2:]], path=footer.path, mtime_ns=footer.mtime_ns)
        for footer in footers
    ]


def _in_child(footers: list[_Footer]) -> list[ShardInfo]:
    try:
        return child.call(_read_footers, footers) if footers else []
    except child.Died as e:
        if len(footers) > 1:  # which of them?
            return [info for footer in footers for info in _in_child([footer])]
        raise DataError(
            f"{footers[0].path}: the footer cannot be read: pyarrow crashes, or needs more memory "
            "or time than any footer does. The file is damaged or encrypted: download it again."
        ) from e


def _read_footers(footers: list[_Footer]) -> list[ShardInfo]:
    return [_read_footer(*footer) for footer in footers]


def _read_footer(path: Path, mtime_ns: int, size: int, sha256: str) -> ShardInfo:
    try:
        return _checked_footer(path, mtime_ns, size, sha256)
    except DataError:
        raise
    except (*UNREADABLE, LookupError) as e:
        raise _damaged_footer(path, e) from e


def _checked_footer(path: Path, mtime_ns: int, size: int, sha256: str) -> ShardInfo:
    file = open_file(path, size, mtime_ns)
    metadata = file.metadata
    if metadata.num_rows == 0:
        raise DataError(
            f"{path}: the file is a valid parquet file with zero rows; there is nothing to train "
            "on. Name another file with --config.data.source=..."
        )
    for name in ("id", "text"):
        _check_string_column(path, file.schema_arrow, name)
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    rows = [group.num_rows for group in groups]
    if min(rows, default=-1) < 0 or sum(rows) != metadata.num_rows:
        raise ValueError(f"its row groups have {rows[:8]} rows, and the file {metadata.num_rows}")
    if metadata.num_rows > min(_MAX_ROWS, 8 * size):
        raise DataError(
            f"{path}: the footer is damaged: it claims {metadata.num_rows:,} rows in {size:,} "
            f"bytes (at most {_MAX_ROWS:,} can be used). Download the file again."
        )
    columns = [metadata.row_group(0).column(j).path_in_schema for j in range(metadata.num_columns)]
    texts = [group.column(columns.index("text")) for group in groups]
    for i, chunk in enumerate(texts):
        start = min(o for o in (chunk.dictionary_page_offset, chunk.data_page_offset) if o)
        if start < 0 or min(chunk.total_compressed_size, chunk.total_uncompressed_size) < 0:
            raise ValueError(f"row group {i} has a negative size")
        if chunk.total_uncompressed_size > _MAX_DOCUMENT * max(1, rows[i]):
            raise DataError(
                f"{path}: row group {i}, column 'text': {chunk.total_uncompressed_size:,} bytes in "
                f"{rows[i]:,} documents, over {_MAX_DOCUMENT:,} each: split them into several."
            )
        if start + chunk.total_compressed_size > size:
            raise DataError(
                f"{path}: row group {i}, column 'text': should end at byte "
                f"{start + chunk.total_compressed_size:,}, but the file has {size:,} "
                f"bytes. Part of the file is missing: download it again.{expected_size(path)}"
            )
    return ShardInfo(
        path=path,
        size_bytes=size,
        mtime_ns=mtime_ns,
        footer_sha256=sha256,
        row_group_sizes=tuple(rows),
        text_bytes=tuple(chunk.total_uncompressed_size for chunk in texts),
    )


def _check_frame(path: Path, size: int) -> str:
    """Checks both ends of the file, where pyarrow's errors are obscure; returns footer_sha256."""
    again = "Download it again and compare its size with the one on the download page."
    again += expected_size(path)
    with path.open("rb") as f:
        head = f.read(4)
        if size < 12 or head != MAGIC:
            raise DataError(
                f"{path}: this is not a parquet file ({size:,} bytes, beginning with {head!r} "
                f"instead of {MAGIC!r}). It may be an error page or a Git LFS pointer. {again}"
            )
        f.seek(size - 8)
        tail = f.read(8)
        if tail[4:] != MAGIC:
            raise DataError(
                f"{path}: the file is truncated: its {size:,} bytes end with {tail[4:]!r} instead "
                f"of {MAGIC!r}, so the download stopped early. {again}"
            )
        footer_bytes = int.from_bytes(tail[:4], "little")
        if footer_bytes + 12 > size or footer_bytes > _MAX_FOOTER:
            raise DataError(
                f"{path}: the footer is damaged: it claims {footer_bytes:,} bytes in a file of "
                f"{size:,} (at most {_MAX_FOOTER:,} are read). {again}"
            )
        f.seek(size - 8 - footer_bytes)
        return hashlib.sha256(f.read(footer_bytes)).hexdigest()


def _check_string_column(path: Path, schema: pa.Schema, name: str) -> None:
    columns = ", ".join(f"{f.name}: {f.type}" for f in schema)
    if schema.names.count(name) != 1:
        raise DataError(
            f"{path}: the file has {schema.names.count(name)} columns named {name!r}, and one is "
            f"needed (FineWeb has `text` and `id`). It has: {columns}. Is this the right file?"
        )
    kind = schema.field(name).type
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(inner) or pa.types.is_large_string(inner)):
        raise DataError(
            f"{path}: column {name!r} is of type {kind}, and string is needed. The file has: "
            f"{columns}. Is this the right file?"
        )


@functools.lru_cache(maxsize=1)  # parsing the footer of a 2 GB shard takes about 10 ms
def open_file(path: Path, size: int, mtime_ns: int) -> pq.ParquetFile:
    """Returns the file, which has passed `inspect`; DataError: its footer is damaged."""
    del size, mtime_ns  # in the cache's key, so that a replaced file is opened again
    try:
        # pre_buffer would hold whole column chunks in memory.
        return pq.ParquetFile(
            path, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True
        )
    except UNREADABLE as e:
        raise _damaged_footer(path, e) from e


def _damaged_footer(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path}: the footer is damaged and cannot be read ({first_line(error)}). Download the "
        "file again."
    )


def first_line(error: BaseException) -> str:
    """Returns the first line of what an error says."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
