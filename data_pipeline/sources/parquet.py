"""Streams the documents of FineWeb parquet files, row group by row group, in bounded memory."""

import contextlib
import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from configs.errors import DataError
from data_pipeline.sources.parquet_footer import UNREADABLE, first_line, open_file

BATCH = 1  # documents decoded at a time: one can be 50 MB, and more are hardly faster
DICTIONARY_BATCH = 64  # of dictionary columns, whose whole dictionary each batch decodes

# After a 50 MB document, Arrow's own allocators keep 100 MB more, and for longer.
pa.set_memory_pool(pa.system_memory_pool())

_INVALID = memoryview(b"\xff")


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
    file = open_file(path, stat.st_size, stat.st_mtime_ns)
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
    except UNREADABLE as e:
        error, reason = e, first_line(e)
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
        with contextlib.suppress(*UNREADABLE):
            if sum(batch.num_rows for batch in _iterate(file, i, [name])) == expected:
                continue
        return repr(name)
    return " or ".join(map(repr, columns))


def _utf8(column: pa.Array) -> Iterator[memoryview | None]:
    """Yields a view of each value's UTF-8; None for null, _INVALID where it is not UTF-8."""
    values, places = column, range(len(column))
    if pa.types.is_dictionary(column.type):  # decoding it would copy a long value for each row
        values, places = column.dictionary, column.indices.to_pylist()
    all_valid = _is_valid(values)  # pyarrow does not check what it reads
    for j in places:
        if j is None or not values[j].is_valid:
            yield None
        elif all_valid or _is_valid(values.slice(j, 1)):
            yield memoryview(values[j].as_buffer())
        else:
            yield _INVALID


def _is_valid(column: pa.Array) -> bool:
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True
