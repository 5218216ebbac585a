"""Checks the footers of parquet files, which say what the file holds and where."""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from configs.errors import DataError
from data_pipeline import child
from data_pipeline.sources.documents import AUTO, MAX_DOCUMENT, MAX_ROWS, Columns
from data_pipeline.sources.known_files import expected_size

MAGIC = b"PAR1"  # the first and the last four bytes of every parquet file
UNREADABLE = (pa.ArrowException, OSError, ValueError)  # what pyarrow raises
_MAX_FOOTER = 1 << 27  # bytes: 100,000 row groups


@dataclasses.dataclass(frozen=True)
class ShardInfo:
    """The metadata of a parquet file, from its footer alone."""

    path: Path
    size_bytes: int
    mtime_ns: int
    footer_sha256: str  # covers size, offset and statistics of every column chunk
    row_group_sizes: tuple[int, ...]  # documents in each row group
    text_bytes: tuple[int, ...]  # uncompressed size of the texts of each row group (an estimate)
    text_column: str
    id_column: str  # "": rows are named by their numbers

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


class _Footer(NamedTuple):
    """A footer to read: the first three fields are of its file."""

    path: Path
    mtime_ns: int
    size: int
    sha256: str
    columns: Columns


# What footers say, by size of the file, sha256 and columns.
_seen: dict[tuple[int, str, Columns], ShardInfo] = {}


def inspect(path: str | Path, columns: Columns = Columns()) -> ShardInfo:  # noqa: B008
    """Checks, from its footer alone, that a file is complete and has the columns.

    Raises:
      DataError: truncated or damaged file, no rows, or a column missing or of a wrong type.
    """
    return inspect_all([Path(path)], columns)[0]


def inspect_all(
    paths: Sequence[Path],
    columns: Columns = Columns(),  # noqa: B008
) -> list[ShardInfo]:
    """Does the same for several files; footers not seen before are read in a child process.

    There is no other protection from files on which pyarrow ends the process, such as one with an
    encrypted column.
    """
    footers = []
    for path in paths:
        stat = path.stat()
        sha256 = footer_sha256(path, stat.st_size)
        footers.append(_Footer(path, stat.st_mtime_ns, stat.st_size, sha256, columns))
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
    return [_read_footer(footer) for footer in footers]


def _read_footer(footer: _Footer) -> ShardInfo:
    try:
        return _checked_footer(footer)
    except DataError:
        raise
    except (*UNREADABLE, LookupError) as e:
        raise _damaged_footer(footer.path, e) from e


def _checked_footer(footer: _Footer) -> ShardInfo:
    path, mtime_ns, size, sha256, columns = footer
    file = open_file(path, size, mtime_ns)
    metadata = file.metadata
    if metadata.num_rows == 0:
        raise DataError(
            f"{path}: the file is a valid parquet file with zero rows; there is nothing to train "
            "on. Name another file with --config.data.source=..."
        )
    schema, id_column = file.schema_arrow, columns.id
    if id_column == AUTO:
        has_id = schema.names.count("id") == 1 and _is_string(schema.field("id").type)
        id_column = "id" if has_id else ""
    for key, name in (("text_column", columns.text), (columns.id_key, id_column)):
        if name or key == "text_column":
            _check_string_column(path, schema, key, name)
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    rows = [group.num_rows for group in groups]
    if min(rows, default=-1) < 0 or sum(rows) != metadata.num_rows:
        raise ValueError(f"its row groups have {rows[:8]} rows, and the file {metadata.num_rows}")
    if metadata.num_rows > min(MAX_ROWS, 8 * size):
        raise DataError(
            f"{path}: the footer is damaged: it claims {metadata.num_rows:,} rows in {size:,} "
            f"bytes (at most {MAX_ROWS:,} can be used). Download the file again."
        )
    names = [metadata.row_group(0).column(j).path_in_schema for j in range(metadata.num_columns)]
    texts = [group.column(names.index(columns.text)) for group in groups]
    for i, chunk in enumerate(texts):
        start = min(o for o in (chunk.dictionary_page_offset, chunk.data_page_offset) if o)
        if start < 0 or min(chunk.total_compressed_size, chunk.total_uncompressed_size) < 0:
            raise ValueError(f"row group {i} has a negative size")
        place = f"{path}: row group {i}, column {columns.text!r}"
        if chunk.total_uncompressed_size > MAX_DOCUMENT * max(1, rows[i]):
            raise DataError(
                f"{place}: {chunk.total_uncompressed_size:,} bytes in "
                f"{rows[i]:,} documents, over {MAX_DOCUMENT:,} each: split them into several."
            )
        if start + chunk.total_compressed_size > size:
            raise DataError(
                f"{place}: should end at byte "
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
        text_column=columns.text,
        id_column=id_column,
    )


def footer_sha256(path: Path, size: int) -> str:
    """Checks both ends of a file, where pyarrow's errors are obscure; returns its `footer_sha256`.

    Raises:
      DataError: truncated or damaged file.
    """
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


def _check_string_column(path: Path, schema: pa.Schema, key: str, name: str) -> None:
    """Checks the column `name`, which data.`key` names."""
    columns = ", ".join(f"{f.name}: {f.type}" for f in schema)
    if schema.names.count(name) != 1:
        raise DataError(
            f"{path}: the file has {schema.names.count(name)} columns named {name!r}, and one is "
            f"needed. It has: {columns}. Name one with --config.data.{key}=..., or use another "
            "file."
        )
    kind = schema.field(name).type
    if not _is_string(kind):
        raise DataError(
            f"{path}: column {name!r} is of type {kind}, and string is needed. The file has: "
            f"{columns}. Name another column with --config.data.{key}=..., or use another file."
        )


def _is_string(kind: pa.DataType) -> bool:
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(inner) or pa.types.is_large_string(inner))


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
