"""Rows of several sources, mixed in exact shares: a pure function of (seed, row).

The sources take turns by a schedule of Tijdeman ("The chairman assignment problem", Discrete
Mathematics 32, 1980): after any number of rows, each source has had its share of them to within
less than one row. Weights are whole numbers, so that the schedule repeats after as many rows as
they add up to. Where weights change, at an optimizer step, counting begins again. Row n of a source
is row n of its own endless sequence: no token is repeated before all of its source were read.
"""

import bisect
import heapq
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from data_pipeline.packing import Documents, Row, Rows, Span


def turns(weights: Sequence[int]) -> np.ndarray:
    """Returns the source of each row of a period, uint16 [sum(weights)].

    Source i has weights[i] >= 0 of them; among the first t, weights[i] / sum(weights) * t to within
    1 - 1 / (2n - 2) rows, where n sources have any.
    """
    mixed = [i for i, weight in enumerate(weights) if weight]
    period = sum(weights)
    if len(mixed) == 1:
        return np.full(period, mixed[0], np.uint16)
    # With share p of row t and k turns so far, source i can have row t if p t - k >= 1 / m, and
    # must have had it before p t - k exceeds 1 - 1 / m. Of those that can, the most urgent one has
    # it. Deadlines have the common denominator `common`, so that all of this is in whole numbers.
    m = 2 * len(mixed) - 2
    common = math.lcm(*(weights[i] for i in mixed))

    def turn(i: int, k: int) -> tuple[int, int, int, int]:
        """Returns (first possible row, deadline, source, k)."""
        first = -(-period * (1 + m * k) // (m * weights[i]))
        return first, (m - 1 + m * k) * (common // weights[i]), i, k

    waiting = [turn(i, 0) for i in mixed]
    heapq.heapify(waiting)
    possible: list[tuple[int, int, int]] = []
    order = np.empty(period, np.uint16)
    for t in range(1, period + 1):
        while waiting and waiting[0][0] <= t:
            heapq.heappush(possible, heapq.heappop(waiting)[1:])
        _, i, k = heapq.heappop(possible)
        order[t - 1] = i
        heapq.heappush(waiting, turn(i, k + 1))
    return order


class _Phase(NamedTuple):
    first_row: int
    weights: tuple[int, ...]
    turns: np.ndarray  # uint16 [period]: source of each row
    ranks: np.ndarray  # uint32 [period]: rows of the same source before it
    before: list[int]  # rows of each source before the phase


class Schedule:
    """Which source each row of a mixture is of."""

    def __init__(self, phases: Sequence[tuple[int, tuple[int, ...]]]):
        """`phases` are (first row, weights of the sources); the first row of all is 0."""
        self._phases: list[_Phase] = []
        for first_row, weights in phases:
            before = self.counts(first_row) if self._phases else [0] * len(weights)
            order = turns(weights)
            ranks = np.empty(order.size, np.uint32)
            for i, weight in enumerate(weights):
                ranks[order == i] = np.arange(weight)
            self._phases.append(_Phase(first_row, weights, order, ranks, before))

    def _position(self, g: int) -> tuple[_Phase, int, int]:
        """Returns the phase of row `g`, the periods of it before the row, and its place in one."""
        phase = self._phases[bisect.bisect(self._phases, g, key=lambda phase: phase.first_row) - 1]
        return phase, *divmod(g - phase.first_row, phase.turns.size)

    def locate(self, g: int) -> tuple[int, int]:
        """Returns the source of row `g`, and which row of that source it is."""
        phase, periods, place = self._position(g)
        source = int(phase.turns[place])
        rank = phase.before[source] + periods * phase.weights[source] + int(phase.ranks[place])
        return source, rank

    def counts(self, n_rows: int) -> list[int]:
        """Returns how many of the first `n_rows` are of each source."""
        if not n_rows:
            return [0] * len(self._phases[0].weights)
        phase, periods, place = self._position(n_rows - 1)
        last = np.bincount(phase.turns[: place + 1], minlength=len(phase.weights)).tolist()
        return [
            before + periods * weight + n
            for before, weight, n in zip(phase.before, phase.weights, last, strict=True)
        ]


class MixtureRows:
    """The rows of several sources by turns, see `Rows`."""

    rows_per_epoch = None

    def __init__(self, names: Sequence[str], rows: Sequence[Rows], schedule: Schedule):
        """Takes the name and the rows of each source."""
        self._names, self._rows, self._schedule = names, rows, schedule

    def spans(self, g: int) -> list[Span]:
        """Returns the content of row `g`, in order: T + 1 tokens, fewer where an epoch ends."""
        source, row = self._schedule.locate(g)
        return self._rows[source].spans(row)

    def documents_of(self, g: int) -> Documents:
        """Returns the documents that the spans of row `g` are of: those of its source."""
        source, row = self._schedule.locate(g)
        return self._rows[source].documents_of(row)

    def document_ids(self, rows: Iterable[int]) -> list[str]:
        """Returns `SOURCE/` and the `Documents.doc_id` of each document in `rows`, each once."""
        ids = (
            f"{self._names[source]}/{document}"
            for source, row in map(self._schedule.locate, rows)
            for document in self._rows[source].document_ids([row])
        )
        return list(dict.fromkeys(ids))

    def epochs(self, n_rows: int) -> dict[str, float]:
        """Returns how often the first `n_rows` read each source, by its name."""
        sources = zip(self._names, self._rows, self._schedule.counts(n_rows), strict=True)
        return {name: value for name, rows, n in sources for value in rows.epochs(n).values()}

    def __getitem__(self, g: int) -> Row:
        """Returns row `g` >= 0."""
        source, row = self._schedule.locate(g)
        return self._rows[source][row]
