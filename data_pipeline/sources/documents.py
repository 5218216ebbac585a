"""What a source is to those who encode it: files of chunks, which yield documents."""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from configs.errors import DataError

MAX_DOCUMENT = 1 << 27  # bytes: reading one takes four times that
MAX_ROWS = 1 << 28  # of a file: their lengths, kept in memory, are then 3 GB
AUTO = "auto"  # of data.id_column
MAGIC = re.compile(r"[*?\[]")  # of a glob


class NoSource(DataError):
    """There is nothing to read at data.source."""


class Document(NamedTuple):
    """One usable row of a chunk."""

    row: int  # index in its chunk, skipped rows included
    id: str  # or the value of data.split_by: its hash decides the split
    utf8: bytes | memoryview  # of the text: valid and never empty; a view can be of 50 MB
    token_count: int | None  # GPT-2 tokens, where the file has FineWeb's column

    @property
    def text(self) -> str:
        """The text as str: up to four times the memory of its UTF-8."""
        return str(self.utf8, "utf-8")


class Damage(NamedTuple):
    """The loss of documents in a damaged chunk."""

    place: str  # in the file
    documents_kept: int  # rows of the chunk that were read
    documents_lost: int  # its other rows, as far as they can be counted
    reason: str


class Columns(NamedTuple):
    """Where a row has its text and its id: keys of `data` of these names."""

    text: str = "text"
    id: str = AUTO
    separator: str = ""
    messages: str = ""  # of a conversation, instead of a text
    id_key: str = "id_column"  # of data: what names `id`, split_by where that is set


class Chunk(Protocol):
    """A part of a file that can be read by itself; it can be pickled."""

    @property
    def first_row(self) -> int:
        """Its first row in the file."""

    @property
    def rows(self) -> int:
        """Rows, unusable ones included."""

    @property
    def text_bytes(self) -> int:
        """UTF-8 of its texts, an estimate."""

    def read(
        self, *, skipped: Counter[str] | None = None, damaged: list[Damage] | None = None
    ) -> Iterator[Document]:
        """Yields the usable documents, in order.

        Args:
          skipped: counts unusable rows by reason: null_text, empty_text, invalid_utf8, null_id.
          damaged: if given, damage is appended here instead of raised.

        Raises:
          DataError: the chunk is damaged.
        """


class FileState(NamedTuple):
    """What the system says of a file; another state is another content."""

    path: Path
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> "FileState":
        """Returns the present state of a file."""
        stat = path.stat()
        return cls(path, stat.st_size, stat.st_mtime_ns)


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """A file of a source, inspected: a shard of the store. Small text files share one."""

    name: str  # within the source: that of its rows in the store
    states: tuple[FileState, ...]  # of its file, or of the small files
    chunks: tuple[Chunk, ...]
    identity: dict[str, Any]  # JSON: of the content, without its folder

    @property
    def path(self) -> Path:
        """The file, or the first one."""
        return self.states[0].path

    @property
    def n_documents(self) -> int:
        """Rows, unusable ones included."""
        return sum(chunk.rows for chunk in self.chunks)

    @property
    def text_bytes(self) -> int:
        """UTF-8 of its texts, an estimate."""
        return sum(chunk.text_bytes for chunk in self.chunks)

    def changed(self) -> Path | None:
        """Returns a file that is no longer what was inspected, if there is one."""
        for state in self.states:
            try:
                if FileState.of(state.path) != state:
                    return state.path
            except OSError:
                return state.path
        return None
