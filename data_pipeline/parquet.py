"""Finds, checks and streams FineWeb parquet files, row group by row group, in bounded memory."""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from configs.errors import DataError
from data_pipeline.known_files import FINEWEB, expected_size

MAGIC = b"PAR1"  # the first and the last four bytes of every parquet file
BATCH = 1  # documents decoded at a time: one can be 50 MB, and more are hardly faster
DICTIONARY_BATCH = 64  # of dictionary columns, whose whole dictionary each batch decodes

# After a 50 MB document, Arrow's own allocators keep 100 MB more, and for longer.
pa.set_memory_pool(pa.system_memory_pool())

_UNREADABLE = (pa.ArrowException, OSError, ValueError)  # what pyarrow raises
_INVALID = memoryview(b"\xff")

_DOWNLOAD = (
    "Download one file of FineWeb, https://huggingface.co/datasets/HuggingFaceFW/fineweb (for "
    f"example {FINEWEB.path}, {FINEWEB.size_bytes / 1e9:.1f} GB, or one of sample/10BT), save it "
    "as data/fineweb_one_shard/000_00000.parquet, or name another file or folder with "
    "--config.data.source=..."
)


class NoSource(DataError):
    """There is no parquet file at data.source."""


class Document(NamedTuple):
    """One usable row of a shard."""

    row: int  # index in its row group, skipped rows included
    id: str
    utf8: memoryview  # of the text: valid and never empty; a view, because it can be 50 MB
    token_count: int | None  # GPT-2 tokens, where the file has FineWeb's column

    @property
    def text(self) -> str:
        """The text as str: up to four times the memory of its UTF-8."""
        return str(self.utf8, "utf-8")


class Damage(NamedTuple):
    """The loss of documents in a damaged row group."""

    row_group: int
    column: str
    documents_kept: int  # rows before the damage
    documents_lost: int  # the other rows, according to the footer
    reason: str


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


def inspect(path: str | Path) -> ShardInfo:
    """Checks, from its footer alone, that a file is complete and has the columns `id` and `text`.

    Raises:
      DataError: truncated or damaged file, no rows, or a column missing or of a wrong type.
    """
    path = Path(path)
    stat = path.stat()
    footer_sha256 = _check_frame(path, stat.st_size)
    file = _open(path, stat.st_size, stat.st_mtime_ns)
    metadata = file.metadata
    if metadata.num_rows == 0:
        raise DataError(
            f"{path}: the file is a valid parquet file with zero rows; there is nothing to train "
            "on. Name another file with --config.data.source=..."
        )
    for name in ("id", "text"):
        _check_string_column(path, file.schema_arrow, name)
    columns = [metadata.row_group(0).column(j).path_in_schema for j in range(metadata.num_columns)]
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    texts = [group.column(columns.index("text")) for group in groups]
    for i, chunk in enumerate(texts):
        start = min(o for o in (chunk.dictionary_page_offset, chunk.data_page_offset) if o)
        if start + chunk.total_compressed_size > stat.st_size:
            raise DataError(
                f"{path}: row group {i}, column 'text': should end at byte "
                f"{start + chunk.total_compressed_size:,}, but the file has {stat.st_size:,} "
                f"bytes. Part of the file is missing: download it again.{expected_size(path)}"
            )
    return ShardInfo(
        path=path,
        size_bytes=stat.st_size,
        mtime_ns=stat.st_mtime_ns,
        footer_sha256=footer_sha256,
        row_group_sizes=tuple(group.num_rows for group in groups),
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
        if footer_bytes + 12 > size:
            raise DataError(
                f"{path}: the footer is damaged: it claims {footer_bytes:,} bytes in a file of "
                f"{size:,}. {again}"
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
def _open(path: Path, size: int, mtime_ns: int) -> pq.ParquetFile:
    del size, mtime_ns  # in the cache's key, so that a replaced file is opened again
    try:
        # pre_buffer would hold whole column chunks in memory.
        return pq.ParquetFile(
            path, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True
        )
    except _UNREADABLE as e:
        raise DataError(
            f"{path}: the footer is damaged and cannot be read ({_first_line(e)}). Download the "
            "file again."
        ) from e


def read_row_group(
    path: str | Path,
    i: int,
    *,
    skipped: Counter[str] | None = None,
    damaged: list[Damage] | None = None,
) -> Iterator[Document]:
    """Yields the usable documents of row group `i`, in order, decoding one at a time.

    Args:
      path: a file that passed `inspect`.
      i: row group, from 0.
      skipped: counts unusable rows by reason: null_text, empty_text, invalid_utf8, null_id.
      damaged: if given, damage ends the row group and is appended here instead of raised.

    Raises:
      DataError: the row group is damaged; the documents before the damage were yielded.
    """
    path = Path(path)
    stat = path.stat()
    skipped = Counter() if skipped is None else skipped
    file = _open(path, stat.st_size, stat.st_mtime_ns)
    schema, columns = file.schema_arrow, ["id", "text"]
    if "token_count" in schema.names and pa.types.is_integer(schema.field("token_count").type):
        columns.append("token_count")
    row = -1
    for batch in _batches(file, path, i, columns, damaged):
        ids, texts = (_utf8(batch.column(j)) for j in (0, 1))
        counts = batch.column(2).to_pylist() if len(columns) == 3 else itertools.repeat(None)
        for utf8_id, utf8_text, token_count in zip(ids, texts, counts, strict=False):
            row += 1
            if utf8_text is None:
                skipped["null_text"] += 1
            elif utf8_id is None:
                skipped["null_id"] += 1
            elif not utf8_text:
                skipped["empty_text"] += 1
            elif utf8_text is _INVALID or utf8_id is _INVALID:
                skipped["invalid_utf8"] += 1
            else:
                yield Document(row, str(utf8_id, "utf-8"), utf8_text, token_count)


def _batches(
    file: pq.ParquetFile, path: Path, i: int, columns: list[str], damaged: list[Damage] | None
) -> Iterator[pa.RecordBatch]:
    """Yields the row group in small batches; adds place and remedy to pyarrow's errors."""
    expected = file.metadata.row_group(i).num_rows
    rows = 0
    error: Exception | None = None
    try:
        for batch in _iterate(file, i, columns):
            rows += batch.num_rows
            yield batch.select(columns)
        if rows == expected:
            return
        reason = f"it ends after {rows:,} documents"
    except _UNREADABLE as e:
        error, reason = e, _first_line(e)
        if isinstance(e, MemoryError) or getattr(e, "errno", None):
            raise DataError(  # an error of the machine, not of the file: no reason to skip rows
                f"{path}: row group {i} cannot be read ({reason}). Check the disk and the memory "
                "of this machine, and run again: finished parts are kept."
            ) from e
    column = _damaged_column(file, i, columns)
    if damaged is None:
        raise DataError(
            f"{path}: row group {i}, column {column}: the data after document {rows} of the row "
            f"group ({expected:,} documents) is damaged ({reason}). Download the file again; or "
            "skip the rest of damaged row groups with --config.data.on_corrupt=keep_before"
        ) from error
    damaged.append(Damage(i, column, rows, expected - rows, reason))


def _iterate(file: pq.ParquetFile, i: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
    shared = any(pa.types.is_dictionary(file.schema_arrow.field(name).type) for name in columns)
    size = DICTIONARY_BATCH if shared else BATCH
    return file.iter_batches(size, row_groups=[i], columns=columns, use_threads=False)


def _damaged_column(file: pq.ParquetFile, i: int, columns: list[str]) -> str:
    """Returns, for the error message, which column cannot be read or is too short."""
    expected = file.metadata.row_group(i).num_rows
    for name in columns:
        with contextlib.suppress(*_UNREADABLE):
            if sum(batch.num_rows for batch in _iterate(file, i, [name])) == expected:
                continue
        return repr(name)
    return " or ".join(map(repr, columns))


def _utf8(column: pa.Array) -> Iterator[memoryview | None]:
    """Yields a view of each value's UTF-8; None for null, _INVALID where it is not UTF-8."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    all_valid = _is_valid(column)  # pyarrow does not check what it reads
    for j, value in enumerate(column):
        buffer = value.as_buffer()
        if buffer is None:
            yield None
        else:
            yield memoryview(buffer) if all_valid or _is_valid(column.slice(j, 1)) else _INVALID


def _is_valid(column: pa.Array) -> bool:
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
