"""A split of a token store: documents of tokens, mapped from its files."""

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from configs.errors import DataError

MAX_MAPS = 256  # token files of a split open at a time: the usual limit is 1,024 open files


def unusable(folder: Path, problem: str, file: str = "") -> DataError:
    """Returns the error of a store that cannot be used, or of one of its files."""
    return DataError(
        f"{folder / file}: {problem}. Delete the folder {folder} and run again: the data is then "
        "prepared again."
    )


class Files(Protocol):
    """Where the files of a store are."""

    def path(self, name: str) -> Path:
        """Returns the local path of a file."""

    def fetch(self, names: Iterable[str]) -> None:
        """Gets files that will be needed."""


class Present:
    """Files in a folder that has all of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, name: str) -> Path:
        """See `Files`."""
        return self._folder / name

    def fetch(self, names: Iterable[str]) -> None:
        """See `Files`."""


class Split:
    """One split of some shards. Documents count from 0 in the order of the source files."""

    def __init__(
        self, files: Files, name: str, shards: Mapping[int, Mapping[str, Any]], dtype: np.dtype
    ) -> None:
        """Reads the document index (12 bytes a document); tokens stay on disk.

        `shards` are entries of the manifest by their number.

        Raises:
          DataError: an index disagrees with the manifest.
        """
        self._files, self._name, self._dtype = files, name, dtype
        self._numbers, self._shards = list(shards), list(shards.values())
        files.fetch(shard_name(i, name, kind) for i in shards for kind in ("lengths", "tokens"))
        counts = [shard[name] for shard in self._shards]
        self.n_docs: int = sum(c["documents"] for c in counts)
        self.n_tokens: int = sum(c["tokens"] for c in counts)  # BOS included
        self.n_bytes: int = sum(c["bytes"] for c in counts)  # UTF-8 bytes of text
        paths = [files.path(shard_name(i, name, "lengths")) for i in shards]
        # int32 [n_docs], BOS included
        self.doc_lengths: np.ndarray = np.concatenate([np.fromfile(path, "<i4") for path in paths])
        self._starts = np.zeros(self.n_docs + 1, np.int64)  # first token of each document
        np.cumsum(self.doc_lengths, out=self._starts[1:])
        self._first_doc = np.cumsum([0, *(c["documents"] for c in counts)])
        self._first_token = np.cumsum([0, *(c["tokens"] for c in counts)])
        ends = self._starts[self._first_doc]
        if not np.array_equal(ends, self._first_token) or self.doc_lengths.min(initial=1) < 1:
            sums = f"{ends[-1]:,} tokens and the manifest says {self.n_tokens:,}"
            raise unusable(
                paths[0].parent, f"the document lengths of split {name!r} add up to {sums}"
            )
        self._tokens = functools.lru_cache(MAX_MAPS)(self._map)

    def _shard_of(self, doc: int) -> int:
        if not 0 <= doc < self.n_docs:
            raise IndexError(f"document {doc} of {self.n_docs} in split {self._name!r}")
        if len(self._shards) == 1:
            return 0
        return int(np.searchsorted(self._first_doc, doc, side="right")) - 1

    def read(self, doc: int, start: int, stop: int) -> np.ndarray:
        """Returns tokens [start:stop), a view of the memory map; IndexError outside it."""
        shard, length = self._shard_of(doc), self.doc_lengths[doc]
        if not 0 <= start <= stop <= length:
            raise IndexError(f"tokens {start}:{stop} of document {doc}, which has {length}")
        base = int(self._starts[doc] - self._first_token[shard])
        return self._tokens(shard)[base + start : base + stop]

    def _map(self, shard: int) -> np.ndarray:
        path = self._files.path(shard_name(self._numbers[shard], self._name, "tokens"))
        # A plain ndarray over the map: slicing np.memmap itself costs several times as much.
        return np.asarray(np.memmap(path, self._dtype, mode="r"))

    def doc_id(self, doc: int) -> str:
        """Returns the source of a document as `file:row`; rows count from 0."""
        shard = self._shard_of(doc)
        path = self._files.path(shard_name(self._numbers[shard], self._name, "rows"))
        offset = 4 * (doc - int(self._first_doc[shard]))
        row = int(np.fromfile(path, "<u4", count=1, offset=offset)[0])
        return f"{self._shards[shard]['source']}:{row}"


def shard_name(shard: int, split: str, kind: str) -> str:
    """Returns the name of one file of a shard; `kind` is one of KINDS."""
    return f"{shard:05d}-{split}.{kind}"
