"""The text that the tokenizer is trained on: a bounded, evenly spread, reproducible sample.

It is taken from the starts of evenly spaced row groups ("places"). The footers alone decide how
much each gives, so any number of processes may count their words, in any order.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from data_pipeline.encode import is_val
from data_pipeline.sources.parquet import Damage, read_row_group
from data_pipeline.sources.parquet_footer import ShardInfo
from data_pipeline.tokenizer import MAX_SLICE, count_words

MAX_PLACES = 256


class Place(NamedTuple):
    """A row group to sample from: the argument of `count_place`."""

    shard: Path
    row_group: int
    n_bytes: int  # UTF-8 of text, at most
    val_fraction: float
    keep_before: bool  # of damage: see data.on_corrupt


def plan_sample(
    shards: Sequence[ShardInfo], n_bytes: int, val_fraction: float, keep_before: bool = False
) -> list[Place]:
    """Divides `n_bytes` evenly over places; what a small row group lacks, larger ones give."""
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
    """Yields the training texts of a place, `place.n_bytes` of UTF-8 at most."""
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
