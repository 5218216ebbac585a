"""Documents -> rows of a fixed length that keep a document whole where it fits, and are padded.

A document longer than a row is cut into rows that share a token, as in `packing`: each of its
tokens is a target once. Documents and the last parts of those that were cut are then put together
by best fit, longest first (Johnson 1973): each into the fullest row that has room. Which documents
share a row is the same in every epoch; the order of rows is not.
"""

import functools
from typing import Any

import numpy as np

from data_pipeline.packing import Counted, DocumentRows, Documents, Span, permutation


class WholeRows(DocumentRows):
    """The rows of some documents: row g belongs to epoch g // rows_per_epoch."""

    _counted: Counted

    def __init__(self, documents: Documents, *, seed: int, stream: int = 0, **rows: Any):
        """Packs the documents; reads tokens of those only that are cut.

        The arguments are those of `PackedRows`, with `counted`. A part of a document of which
        nothing counts is left out.
        """
        super().__init__(documents, **rows)
        self._seed = seed
        self._first_word = stream << 32
        order = permutation(documents.n_docs, seed, self._first_word)
        spans = [span for document in order.tolist() for span in self._cut(document)]
        spans.sort(key=lambda span: span.start - span.stop)  # stable: equal ones in random order
        self._rows = best_fit(spans, self._block_size + 1)
        self.rows_per_epoch = len(self._rows)
        self._order = functools.lru_cache(2)(self._order_of)

    def _cut(self, document: int) -> list[Span]:
        length, size = int(self._documents.doc_lengths[document]), self._block_size
        if length <= size + 1:
            return [Span(document, 0, length)]
        spans = [
            Span(document, start, min(start + size + 1, length))
            for start in range(0, length - 1, size)
        ]
        counts = self._counted(self._documents.read(document, 0, length))
        return [span for span in spans if counts[span.start + 1 : span.stop].any()]

    def _order_of(self, epoch: int) -> np.ndarray:
        return permutation(self.rows_per_epoch, self._seed, self._first_word + 2 * epoch + 1)

    def spans(self, g: int) -> list[Span]:
        """Returns the content of row `g`, in order: at most T + 1 tokens."""
        epoch, index = divmod(g, self.rows_per_epoch)
        return self._rows[self._order(epoch)[index]]


def best_fit(spans: list[Span], capacity: int) -> list[list[Span]]:
    """Puts spans, none longer than `capacity`, into rows: each into the fullest that has room."""
    rows: list[list[Span]] = []
    with_room: list[list[list[Span]]] = [[] for _ in range(capacity + 1)]  # rows by their room
    rooms = 0  # bit r: there is a row with room for r tokens
    for span in spans:
        length = span.stop - span.start
        if enough := rooms >> length:
            room = length + (enough & -enough).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                rooms &= ~(1 << room)
        else:
            room, row = capacity, []
            rows.append(row)
        row.append(span)
        with_room[room - length].append(row)
        rooms |= 1 << (room - length)
    return rows
