"""Streams the documents of parquet files, row group by row group, in bounded memory."""

import contextlib
import dataclasses
import functools
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from configs.errors import DataError
from data_pipeline.sources.documents import Columns, Damage, Document, FileState, SourceFile
from data_pipeline.sources.parquet_footer import (
    UNREADABLE,
    ShardInfo,
    first_line,
    footer_sha256,
    inspect_all,
    open_file,
)

BATCH = 16  # documents decoded at a time, which takes half the time of one at a time
SMALL = 8_000_000  # bytes of a row group; of larger ones, one is: it can be 50 MB
DICTIONARY_BATCH = 64  # of dictionary columns, whose whole dictionary each batch decodes

# After a 50 MB document, Arrow's own allocators keep 100 MB more, and for longer.
pa.set_memory_pool(pa.system_memory_pool())

_INVALID = memoryview(b"\xff")
_NO_ID = memoryview(b"")


@dataclasses.dataclass(frozen=True)
class RowGroup:
    """A row group as a `Chunk`."""

    path: Path  # of a file that passed `inspect`
    name: str  # of the file in the source
    index: int
    first_row: int
    rows: int
    text_bytes: int
    columns: tuple[str, str]  # of the text and of the id

    def read(
        self, *, skipped: Counter[str] | None = None, damaged: list[Damage] | None = None
    ) -> Iterator[Document]:
        """See `Chunk.read`."""
        documents = read_row_group(
            self.path, self.index, self.columns, skipped=skipped, damaged=damaged
        )
        if self.columns[1]:
            return documents
        return (d._replace(id=f"{self.name}:{self.first_row + d.row}") for d in documents)


@dataclasses.dataclass(frozen=True)
class ParquetFile(SourceFile):
    """A parquet file as a `SourceFile`."""

    info: ShardInfo

    def changed(self) -> Path | None:
        """See `SourceFile.changed`; compares the footer, too."""
        info = self.info
        with contextlib.suppress(DataError, OSError):
            stat = self.path.stat()
            if (stat.st_size, stat.st_mtime_ns) == (info.size_bytes, info.mtime_ns):
                if footer_sha256(self.path, stat.st_size) == info.footer_sha256:
                    return None
        return self.path


def open_all(named: Mapping[str, Path], columns: Columns) -> list[SourceFile]:
    """Returns the files of a source, by name, with their footers checked."""
    infos = inspect_all(list(named.values()), columns)
    return [_open(name, info) for name, info in zip(named, infos, strict=True)]


def _open(name: str, info: ShardInfo) -> ParquetFile:
    first_rows = itertools.accumulate(info.row_group_sizes, initial=0)
    sizes = zip(first_rows, info.row_group_sizes, info.text_bytes, strict=False)
    columns = (info.text_column, info.id_column)
    chunks = tuple(RowGroup(info.path, name, i, *size, columns) for i, size in enumerate(sizes))
    state = FileState(info.path, info.size_bytes, info.mtime_ns)
    return ParquetFile(name, (state,), chunks, info.identity() | {"file": name}, info)


def read_row_group(
    path: str | Path,
    i: int,
    columns: tuple[str, str] = ("text", "id"),
    *,
    skipped: Counter[str] | None = None,
    damaged: list[Damage] | None = None,
) -> Iterator[Document]:
    """Yields the usable documents of row group `i`, in order, decoding few at a time.

    Args:
      path: a file that passed `inspect`.
      i: row group, from 0.
      columns: of the text and of the id; without the latter, ids are "".
      skipped: counts unusable rows by reason: null_text, empty_text, invalid_utf8, null_id.
      damaged: if given, damage ends the row group and is appended here instead of raised.

    Raises:
      DataError: the row group is damaged; the documents before the damage were yielded.
    """
    path = Path(path)
    stat = path.stat()
    skipped = Counter() if skipped is None else skipped
    file = open_file(path, stat.st_size, stat.st_mtime_ns)
    text_column, id_column = columns
    schema, counted = file.schema_arrow, "token_count"
    names = list(dict.fromkeys(filter(None, (id_column, text_column))))
    if has_counts := counted in schema.names and pa.types.is_integer(schema.field(counted).type):
        names.append(counted)
    row = -1
    for batch in _batches(file, path, i, names, damaged):
        texts = _utf8(batch.column(text_column))
        ids = _utf8(batch.column(id_column)) if id_column else itertools.repeat(_NO_ID)
        counts: Iterable[int | None] = itertools.repeat(None)
        if has_counts:
            counts = batch.column(counted).to_pylist()
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
    place = f"row group {i}, column {column}"
    damaged.append(Damage(place, rows, expected - rows, reason))


def _iterate(file: pq.ParquetFile, i: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Yields the row group in batches; from one that cannot be decoded, the rows that can."""
    size, done = _batch_size(file, i, columns), 0
    batches = functools.partial(
        file.iter_batches, row_groups=[i], columns=columns, use_threads=False
    )
    try:
        for batch in batches(size):
            done += batch.num_rows
            yield batch
    except UNREADABLE:
        if size != BATCH:
            raise
        yield from itertools.islice(batches(1), done, None)


def _batch_size(file: pq.ParquetFile, i: int, columns: list[str]) -> int:
    if any(pa.types.is_dictionary(file.schema_arrow.field(name).type) for name in columns):
        return DICTIONARY_BATCH
    group = file.metadata.row_group(i)
    all_columns = map(group.column, range(group.num_columns))
    size = sum(c.total_uncompressed_size for c in all_columns if c.path_in_schema in columns)
    return BATCH if size <= SMALL else 1


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
