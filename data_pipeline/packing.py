"""Documents -> rows of a fixed length: a pure function of (seed, row) that drops no token.

Every epoch, the documents of a split are concatenated in an order of that epoch:

    epoch e   | BOS doc 7 ...... | BOS doc 2 .. | BOS doc 5 ............ | ... | BOS
    rows      |---- row 0 ----|---- row 1 ----|---- row 2 ----|   ...   |- last row -|

Nothing is copied: row i starts at token i * T of that line, and a binary search in the cumulative
document lengths finds its documents. A row holds T + 1 tokens: T inputs and, shifted by one, T
targets. So neighbouring rows share one token and each token of the line is a target once; the
line's first BOS is the target at its very end. The last row is padded with BOS, which the loss mask
excludes. An epoch visits rows in steps of about their number over the golden ratio, so that the
rows of a batch are never neighbours, but spread over the whole line.
"""

import math
import threading
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import numpy as np


class Documents(Protocol):
    """A source of documents to pack, such as a split of a store."""

    n_docs: int
    n_tokens: int
    doc_lengths: np.ndarray  # int32 [n_docs], BOS included

    def read(self, doc: int, start: int, stop: int) -> np.ndarray:
        """Returns tokens [start:stop) of a document."""

    def doc_id(self, doc: int) -> str:
        """Returns the source of a document as `file.parquet:row`."""


class Row(NamedTuple):
    """One row of T tokens."""

    inputs: np.ndarray  # int32 [T]
    targets: np.ndarray  # int32 [T], inputs shifted left by one
    loss_mask: np.ndarray  # bool [T], which targets count: not those of padding
    segment_ids: np.ndarray | None  # int32 [T], documents of the row from 1; 0: padding
    positions: np.ndarray | None  # int32 [T], from 0 at each document's first token in the row


# The ids of a document, or of its beginning [n] -> which of them count as targets: bool [n].
Counted = Callable[[np.ndarray], np.ndarray]


class Span(NamedTuple):
    """Tokens [start:stop) of a document, which a row holds."""

    document: int  # index in the split
    start: int  # 0 where the document begins in this row
    stop: int


class _Epoch(NamedTuple):
    documents: np.ndarray  # uint32 [n_docs], in the order of this epoch
    ends: np.ndarray  # int64 [n_docs], cumulative sum of their lengths
    first_row: int  # index in the line of the first row that is visited


def random_words(n: int, *key: int) -> np.ndarray:
    """Returns the first `n` words (uint64) of two 64-bit keys.

    Raw Philox words (Salmon et al. 2011), which NumPy promises to keep, unlike those of
    `Generator.permutation`.
    """
    return np.random.Philox(key=np.array(key, dtype=np.uint64)).random_raw(n)


def permutation(n: int, *key: int) -> np.ndarray:
    """Returns the permutation of range(n), uint32, that sorts n random 32-bit numbers.

    NumPy's stable sort of 16-bit digits is a radix sort: two take a quarter of the time of sorting
    32-bit numbers. Equal numbers, a hundred pairs in a million, stay in order.
    """
    words = random_words(-(-n // 2), *key).astype("<u8", copy=False)
    low, high = words.view("<u2")[: 2 * n].reshape(2, n)
    order = np.argsort(low, kind="stable").astype(np.uint32)
    return order.take(np.argsort(high.take(order), kind="stable"))


def golden_step(n: int) -> int:
    """Returns a step that visits all of range(n), mod n, with successive visits far apart.

    Multiples of the golden ratio are spread most evenly (three-gap theorem).
    """
    step = round(n * (math.sqrt(5) - 1) / 2)
    while math.gcd(step, n) != 1:
        step += 1
    return step


class Rows(Protocol):
    """An endless sequence of rows."""

    @property
    def rows_per_epoch(self) -> int | None:
        """Rows that hold each token once; None where sources have epochs of their own."""

    def __getitem__(self, g: int) -> Row:
        """Returns row `g` >= 0."""

    def spans(self, g: int) -> list[Span]:
        """Returns the content of row `g`, in order: T + 1 tokens, fewer where it is padded."""

    def documents_of(self, g: int) -> Documents:
        """Returns the documents that the spans of row `g` are of."""

    def document_ids(self, rows: Iterable[int]) -> list[str]:
        """Returns the `Documents.doc_id` of each document in `rows`, each once."""

    def epochs(self, n_rows: int) -> dict[str, float]:
        """Returns how often the first `n_rows` read each source; the only one has no name."""


class DocumentRows:
    """Rows made of the `spans` of some documents, which a subclass chooses. See `Rows`."""

    rows_per_epoch: int

    def __init__(
        self,
        documents: Documents,
        *,
        block_size: int,
        bos_id: int,
        segments: bool,
        counted: Counted | None = None,
    ):
        """Reads no tokens.

        Args:
            documents: each starts with BOS.
            block_size: T.
            bos_id: the padding of rows, and a last target that no document has.
            segments: whether rows have `segment_ids` and `positions`.
            counted: which tokens count as targets; no document's first one does. None: all do.
        """
        self._documents = documents
        self._block_size = block_size
        self._bos_id = bos_id
        self._segments = segments
        self._counted = counted

    def spans(self, g: int) -> list[Span]:
        """Returns the content of row `g`, in order: T + 1 tokens, fewer where it is padded."""
        raise NotImplementedError

    def documents_of(self, g: int) -> Documents:
        """Returns the documents that the spans of row `g` are of: the same for all rows."""
        return self._documents

    def document_ids(self, rows: Iterable[int]) -> list[str]:
        """Returns the `Documents.doc_id` of each document in `rows`, each once."""
        documents = dict.fromkeys(span.document for g in rows for span in self.spans(g))
        return [self._documents.doc_id(document) for document in documents]

    def epochs(self, n_rows: int) -> dict[str, float]:
        """Returns how often the first `n_rows` read the documents, under the name ""."""
        return {"": n_rows / self.rows_per_epoch}

    def __getitem__(self, g: int) -> Row:
        """Returns row `g` >= 0 of the endless sequence."""
        tokens = np.full(self._block_size + 1, self._bos_id, dtype=np.int32)
        counts = np.zeros(self._block_size + 1, bool)
        cuts, size = [], 0
        for document, start, stop in self.spans(g):
            cuts.append(size)
            size += stop - start
            tokens[cuts[-1] : size] = self._documents.read(document, start, stop)
            if self._counted is not None:  # what precedes a span's first token is not its context
                whole = self._documents.read(document, 0, stop)
                counts[cuts[-1] + 1 : size] = self._counted(whole)[start + 1 :]
        # Target i is token i + 1. An epoch's very last target, after the last document, is the BOS
        # that `tokens` was filled with.
        n_targets = min(self._block_size, size)
        loss_mask = np.arange(self._block_size) < n_targets
        if self._counted is not None:
            loss_mask = counts[1:]
        segment_ids = positions = None
        if self._segments:
            segment_ids, positions = self._number_segments(cuts, n_targets)
        return Row(tokens[:-1], tokens[1:], loss_mask, segment_ids, positions)

    def _number_segments(self, cuts: list[int], n_inputs: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns (segment_ids, positions) of a row whose spans start at `cuts`."""
        starts = np.zeros(self._block_size + 1, dtype=np.int32)
        starts[cuts] = 1  # a last cut at T is a target only
        segment_ids = np.cumsum(starts[:-1], dtype=np.int32)
        index = np.arange(self._block_size, dtype=np.int32)
        positions = index - np.maximum.accumulate(index * starts[:-1])
        segment_ids[n_inputs:] = 0
        positions[n_inputs:] = 0
        return segment_ids, positions


class PackedRows(DocumentRows):
    """The rows of some documents: row g belongs to epoch g // rows_per_epoch."""

    def __init__(self, documents: Documents, *, seed: int, stream: int = 0, **rows: Any):
        """Prepares the index; reads no tokens.

        Args:
            documents: each starts with BOS.
            seed: gives, with the epoch, the order of documents and rows.
            stream: below 2**31; under one seed, each has orders of its own.
            rows: see `DocumentRows`.
        """
        super().__init__(documents, **rows)
        self._seed = seed
        self._first_word = stream << 32
        self.rows_per_epoch = -(-documents.n_tokens // self._block_size)
        self._row_step = golden_step(self.rows_per_epoch)
        self._epochs: dict[int, _Epoch] = {}
        self._lock = threading.Lock()  # Grain may read from several threads

    def _epoch(self, number: int) -> _Epoch:
        with self._lock:
            if number not in self._epochs:
                # Two purposes, two keys: even for documents, odd for rows.
                key = self._first_word + 2 * number
                documents = permutation(self._documents.n_docs, self._seed, key)
                ends = np.cumsum(self._documents.doc_lengths.take(documents), dtype=np.int64)
                word = int(random_words(1, self._seed, key + 1)[0])
                # A batch straddles at most two epochs, and older ones are not needed again.
                self._epochs = {k: v for k, v in self._epochs.items() if k == number - 1}
                self._epochs[number] = _Epoch(documents, ends, word % self.rows_per_epoch)
            return self._epochs[number]

    def spans(self, g: int) -> list[Span]:
        """Returns the content of row `g`, in order: T + 1 tokens, fewer where an epoch ends."""
        number, index = divmod(g, self.rows_per_epoch)
        epoch = self._epoch(number)
        row = (epoch.first_row + index * self._row_step) % self.rows_per_epoch
        position = row * self._block_size
        row_stop = min(position + self._block_size + 1, self._documents.n_tokens)
        j = int(np.searchsorted(epoch.ends, position, side="right"))
        spans = []
        while position < row_stop:
            document, end = int(epoch.documents[j]), int(epoch.ends[j])
            first, stop = end - int(self._documents.doc_lengths[document]), min(end, row_stop)
            spans.append(Span(document, position - first, stop - first))
            position, j = stop, j + 1
        return spans
