"""Rows of any number of documents: those of one group after the other, each packed alone.

A group is some consecutive shards of a store, about GROUP_DOCUMENTS documents, whose order is in
memory at once. An epoch visits the groups in an order of its own. Only two groups have their index
in memory: the one that is read, and from its middle on the next one, which a thread prepares.
"""

import bisect
import functools
import itertools
import math
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent import futures
from typing import Any, NamedTuple

from configs.errors import UserError
from data_pipeline import background
from data_pipeline.packing import (
    Counted,
    DocumentRows,
    Documents,
    PackedRows,
    Row,
    Span,
    permutation,
)
from data_pipeline.whole_rows import WholeRows

GROUP_DOCUMENTS = 1 << 23  # 24 bytes each: 12 of the split's index, 12 of an epoch's order
MAX_GROUPS = 1 << 16
_ORDER = 1 << 63  # begins the keys of the orders of groups: beyond those of documents and rows


class Group(NamedTuple):
    """Documents that are packed together."""

    n_tokens: int  # BOS included, at least 1
    open: Callable[[], Documents]  # reads their index


def cut(n_documents: Sequence[int]) -> list[range]:
    """Divides shards of so many documents into groups of about equal and the intended size.

    Each has a document; together they have all.
    """
    starts = [0, *itertools.accumulate(n_documents)]
    total = starts[-1]
    n_groups = math.ceil(total / GROUP_DOCUMENTS)
    group_of = [min(start * n_groups // max(total, 1), n_groups - 1) for start in starts[:-1]]
    groups = itertools.groupby(range(len(n_documents)), group_of.__getitem__)
    shards = (list(group) for _, group in groups)
    return [range(s[0], s[-1] + 1) for s in shards if any(n_documents[i] for i in s)]


def pack(
    groups: Sequence[Group], *, stream: int = 0, counted: Counted | None = None, **packing: Any
) -> "DocumentRows | GroupedRows":
    """Returns the rows of `groups`: one is packed as it is; for `packing` see `PackedRows`.

    With `counted`, documents stay whole. `stream` is below 2**15; under one seed, each has orders
    of its own. UserError where there are too many documents to keep them whole.
    """
    assert 0 < len(groups) <= MAX_GROUPS and stream < 1 << 15, (len(groups), stream)
    stream *= MAX_GROUPS
    if counted is not None:
        if len(groups) > 1:
            raise UserError(
                f"conversations are packed at once, and those of data.source are over "
                f"{GROUP_DOCUMENTS:,}: name a part of them."
            )
        return WholeRows(groups[0].open(), stream=stream, counted=counted, **packing)
    if len(groups) == 1:
        return PackedRows(groups[0].open(), stream=stream, **packing)
    return GroupedRows(groups, stream=stream, **packing)


class GroupedRows:
    """The endless sequence of rows of several groups, see `Rows`."""

    def __init__(
        self, groups: Sequence[Group], *, block_size: int, seed: int, stream: int, **packing: Any
    ):
        """Reads no index; for the arguments see `PackedRows`. Group k has the stream `stream` + k.

        Each group's last row in an epoch is padded.
        """
        self._groups, self._seed, self._stream = groups, seed, stream
        self._packing = {"block_size": block_size, "seed": seed, **packing}
        self._n_rows = [-(-group.n_tokens // block_size) for group in groups]
        self.rows_per_epoch = sum(self._n_rows)
        self._order = functools.lru_cache(2)(self._order_of)
        self._lock = threading.Lock()  # Grain may read from several threads
        # By (epoch, group), in the order of opening.
        self._opened: dict[tuple[int, int], futures.Future[PackedRows]] = {}

    def _order_of(self, epoch: int) -> tuple[list[int], list[int]]:
        """Returns the groups in the order in which an epoch visits them, and where each ends."""
        key = _ORDER + (self._stream << 32) + epoch
        order: list[int] = permutation(len(self._groups), self._seed, key).tolist()
        return order, list(itertools.accumulate(self._n_rows[group] for group in order))

    def _locate(self, g: int) -> tuple[PackedRows, int]:
        """Returns the rows of the group of row `g`, and its number among them."""
        epoch, row = divmod(g, self.rows_per_epoch)
        order, ends = self._order(epoch)
        place = bisect.bisect(ends, row)
        group, n_rows = order[place], self._n_rows[order[place]]
        row -= ends[place] - n_rows
        rows = self._open(epoch, group)
        if row >= n_rows // 2:
            following = order[place + 1 :] or self._order(epoch + 1)[0]
            self._open(epoch + (place + 1 == len(order)), following[0])
        return rows.result(), epoch * n_rows + row

    def _open(self, epoch: int, group: int) -> futures.Future[PackedRows]:
        """Returns a group with the order of its documents, which a thread prepares."""
        key = epoch, group
        with self._lock:
            if key not in self._opened:
                while len(self._opened) > 1:
                    del self._opened[next(iter(self._opened))]
                prepare = functools.partial(self._prepare, epoch, group)
                self._opened[key] = background.start("open-group", prepare)
            return self._opened[key]

    def _prepare(self, epoch: int, group: int) -> PackedRows:
        documents = self._groups[group].open()
        rows = PackedRows(documents, stream=self._stream + group, **self._packing)
        rows.spans(epoch * rows.rows_per_epoch)
        return rows

    def spans(self, g: int) -> list[Span]:
        """Returns the content of row `g`, in order: T + 1 tokens, fewer where a group ends."""
        rows, row = self._locate(g)
        return rows.spans(row)

    def documents_of(self, g: int) -> Documents:
        """Returns the documents that the spans of row `g` are of: those of its group."""
        rows, row = self._locate(g)
        return rows.documents_of(row)

    def document_ids(self, rows: Iterable[int]) -> list[str]:
        """Returns the `Documents.doc_id` of each document in `rows`, each once."""
        located = map(self._locate, rows)
        return list(dict.fromkeys(i for packed, row in located for i in packed.document_ids([row])))

    def epochs(self, n_rows: int) -> dict[str, float]:
        """Returns how often the first `n_rows` read the documents, under the name ""."""
        return {"": n_rows / self.rows_per_epoch}

    def __getitem__(self, g: int) -> Row:
        """Returns row `g` >= 0."""
        rows, row = self._locate(g)
        return rows[row]
