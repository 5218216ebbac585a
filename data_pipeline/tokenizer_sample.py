"""The tokenizer's sample: a bounded, spread-out part of the shards, the same each time.

It is taken from the starts of evenly spaced row groups ("places"). How much each may give follows
from the footers alone, so that places are counted by any number of processes, in any order.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from data_pipeline.encode import is_val
from data_pipeline.parquet import Damage, ShardInfo, read_row_group
from data_pipeline.tokenizer import MAX_SLICE, count_words

MAX_PLACES = 256


class Place(NamedTuple):
    """What a worker has to know to count the words of one place."""

    shard: Path
    row_group: int
    n_bytes: int  # UTF-8 of text, at most
    val_fraction: float
    keep_before: bool  # of damage: see data.on_corrupt


def plan_sample(
    shards: Sequence[ShardInfo], n_bytes: int, *, val_fraction: float, keep_before: bool = False
) -> list[Place]:
    """Shares `n_bytes` out evenly; what a small row group cannot give, larger ones give."""
    groups = [(s.path, i, size) for s in shards for i, size in enumerate(s.text_bytes)]
    n = min(len(groups), MAX_PLACES)
    chosen = [groups[k * len(groups) // n] for k in range(n)]
    budgets, left = [0] * n, n_bytes
    for done, k in enumerate(sorted(range(n), key=lambda k: chosen[k][2])):  # small ones first
        budgets[k] = left // (n - done)
        left -= min(chosen[k][2], budgets[k])
    return [
        Place(path, i, budget, val_fraction, keep_before)
        for (path, i, _), budget in zip(chosen, budgets, strict=True)
    ]


def texts(place: Place) -> Iterator[str]:
    """Yields the texts of a place; not those of validation, and not more than it may give."""
    left = place.n_bytes
    damaged: list[Damage] | None = [] if place.keep_before else None
    for document in read_row_group(place.shard, place.row_group, damaged=damaged):
        if left <= 0:
            return
        if not is_val(document.id, place.val_fraction):
            utf8 = document.utf8[: min(left, MAX_SLICE)]  # of a long document only the beginning
            left -= len(utf8)
            yield str(utf8, "utf-8", "ignore")  # it may end within a character


def count_place(place: Place) -> Counter[str]:
    """Counts the words of a place."""
    return count_words(texts(place))
