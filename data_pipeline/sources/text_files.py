"""Files of JSON lines or text as files of a source: cut at records, or small ones together."""

import dataclasses
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from configs.errors import DataError
from data_pipeline.files import hash_json
from data_pipeline.sources.documents import Damage, Document, FileState, SourceFile
from data_pipeline.sources.formats import BOM, TOO_LONG, Broken, Format, Unusable
from data_pipeline.sources.inspection import CHUNK_BYTES, Inspection, inspect_all
from data_pipeline.sources.records import BadCompression, part_of, split

GROUP_BYTES = 1 << 30  # of files of one document each that share a shard of the store
GROUP_FILES = 1 << 16
_REMEDY = (
    "Correct it (text that is not UTF-8: with `iconv -f LATIN1 -t UTF-8`, for example; a file that "
    "ends early: download it again), or leave what cannot be read out with "
    "--config.data.on_corrupt=keep_before"
)


class _Row(NamedTuple):
    """A row that was read."""

    where: str  # for messages: the file, and the place in it
    place: str  # in the file, or its name among small files
    id: str  # where the format gives none
    record: bytes | Broken


@dataclasses.dataclass(frozen=True)
class Records:
    """Consecutive records of a file, as a `Chunk`."""

    path: Path
    name: str  # of the file in the source
    format: Format
    offset: int  # bytes of the file's content before it
    text_bytes: int  # of its content
    first_row: int
    rows: int
    end: str  # why the content ends with it, before the file does; "": it does not

    def read(
        self, *, skipped: Counter[str] | None = None, damaged: list[Damage] | None = None
    ) -> Iterator[Document]:
        """See `Chunk.read`."""
        yield from _documents(self._rows(), self.format, skipped, damaged)
        if self.end and damaged is not None:
            damaged.append(Damage("the end", self.rows, 0, self.end))

    def _rows(self) -> Iterator[_Row]:
        row = self.first_row
        content = part_of(self.path, self.offset, self.text_bytes)
        for record, _ in split(content, self.format.separator):
            place = f"{self.format.unit} {row + 1:,}"
            document_id = f"{self.name}:{row}"
            checked = _checked(record, is_first=not row)
            yield _Row(f"{self.path}: {place}", place, document_id, checked)
            row += 1
        if row != self.first_row + self.rows:
            raise DataError(f"{self.path}: the file changed while it was read. Run again.")


@dataclasses.dataclass(frozen=True)
class WholeFiles:
    """Files of one document each, as a `Chunk`."""

    files: tuple[tuple[str, Path], ...]  # name in the source, path
    format: Format
    text_bytes: int
    first_row: int

    @property
    def rows(self) -> int:
        """See `Chunk`."""
        return len(self.files)

    def read(
        self, *, skipped: Counter[str] | None = None, damaged: list[Damage] | None = None
    ) -> Iterator[Document]:
        """See `Chunk.read`."""
        return _documents(self._rows(), self.format, skipped, damaged)

    def _rows(self) -> Iterator[_Row]:
        for name, path in self.files:
            record: bytes | Broken
            try:
                content = part_of(path, 0, sys.maxsize)
                record = _checked(next(split(content, b""), (b"", 0))[0], is_first=True)
            except BadCompression as e:
                record = Broken(f"the compressed data is damaged ({e})")
            yield _Row(str(path), name, f"{name}:0", record)


def open_all(
    named: Mapping[str, Path], format: Format, cache: Path, *, keep_before: bool
) -> list[SourceFile]:
    """Returns files of one format, looked through; those of one document each in groups.

    Raises:
      DataError: one cannot be read, or is not as it should be and `keep_before` is False.
    """
    states = [FileState.of(path) for path in named.values()]
    if format.separator:
        groups = [slice(i, i + 1) for i in range(len(states))]
    else:
        groups = list(groups_of([state.size for state in states]))
    names = list(named)
    opened = []
    for group in groups:
        found = inspect_all(states[group], format, cache)
        for state, inspection in zip(states[group], found, strict=True):
            if inspection.problem and not keep_before:
                raise DataError(f"{state.path}: {inspection.problem}. {_REMEDY}.")
        open_group = _open_records if format.separator else _open_whole_files
        opened.append(open_group(names[group], states[group], found, format))
    return opened


def _open_records(
    names: Sequence[str], states: Sequence[FileState], found: Sequence[Inspection], format: Format
) -> SourceFile:
    (name,), (state,), (inspection,) = names, states, found
    chunks = []
    for offset, size, first_row, rows in inspection.chunks:
        is_last = offset == inspection.chunks[-1][0]
        end = inspection.end if is_last else ""
        chunks.append(Records(state.path, name, format, offset, size, first_row, rows, end))
    identity = {
        "file": name,
        "size_bytes": state.size,
        "documents": sum(chunk.rows for chunk in chunks),
        "sha256": inspection.sha256,
    }
    return SourceFile(name, tuple(states), tuple(chunks), identity)


def _open_whole_files(
    names: Sequence[str], states: Sequence[FileState], found: Sequence[Inspection], format: Format
) -> SourceFile:
    sizes = [sum(chunk[1] for chunk in inspection.chunks) for inspection in found]
    chunks, first = [], 0
    for last in _cuts(sizes, CHUNK_BYTES):
        files = tuple((names[i], states[i].path) for i in range(first, last))
        chunks.append(WholeFiles(files, format, sum(sizes[first:last]), first))
        first = last
    name = f"{names[0]}+{len(names) - 1}" if len(names) > 1 else names[0]
    identity = {
        "file": name,
        "size_bytes": sum(state.size for state in states),
        "documents": len(names),
        "sha256": hash_json([[name, i.sha256] for name, i in zip(names, found, strict=True)]),
    }
    return SourceFile(name, tuple(states), tuple(chunks), identity)


def groups_of(sizes: Sequence[int]) -> Iterator[slice]:
    """Yields the files of these sizes, of one document each, that share a shard of the store."""
    first = 0
    for last in _cuts([max(size, GROUP_BYTES // GROUP_FILES) for size in sizes], GROUP_BYTES):
        yield slice(first, last)
        first = last


def _cuts(sizes: Sequence[int], n_bytes: int) -> Iterator[int]:
    """Yields the end of each run of items that add up to `n_bytes`, or are the last ones."""
    total = 0
    for i, size in enumerate(sizes, 1):
        total += size
        if total >= n_bytes or i == len(sizes):
            yield i
            total = 0


def _checked(record: bytes | None, *, is_first: bool) -> bytes | Broken:
    if record is None:
        return Broken(TOO_LONG)
    return record.removeprefix(BOM) if is_first else record


def _documents(
    rows: Iterable[_Row], format: Format, skipped: Counter[str] | None, damaged: list[Damage] | None
) -> Iterator[Document]:
    """Yields the documents of rows; counts the others, or raises, as `Chunk.read` says."""
    skipped = Counter() if skipped is None else skipped
    lost: list[str] = []
    n = -1
    for n, row in enumerate(rows):
        try:
            if isinstance(row.record, Broken):
                raise row.record
            name, text = format.document(row.record)
        except Unusable as e:
            skipped[str(e)] += 1
        except Broken as e:
            if damaged is None:
                raise DataError(f"{row.where}: {e}. {_REMEDY}.") from e
            lost.append(f"{row.place}: {e}" if not lost else row.place)
        else:
            yield Document(n, name or row.id, text, None)
    if lost and damaged is not None:
        place, _, reason = lost[0].partition(": ")
        more = f" and {len(lost) - 1:,} more" if len(lost) > 1 else ""
        damaged.append(Damage(place + more, n + 1 - len(lost), len(lost), reason))
