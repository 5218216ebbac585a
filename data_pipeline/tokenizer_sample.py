"""The text that the tokenizer is trained on: a bounded, evenly spread, reproducible sample.

It is taken from the starts of evenly spaced row groups ("places"). The footers alone decide how
much each gives, so any number of processes may count their words, in any order.
"""

import bisect
import itertools
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
    chosen = choose([shard.n_row_groups for shard in shards])
    budgets = divide([shards[shard].text_bytes[i] for shard, i in chosen], n_bytes)
    return [
        Place(shards[shard].path, i, budget, val_fraction, keep_before)
        for (shard, i), budget in zip(chosen, budgets, strict=True)
    ]


def choose(n_groups: Sequence[int]) -> list[tuple[int, int]]:
    """Returns (shard, row group) of at most MAX_PLACES evenly spaced ones, given their numbers."""
    ends = list(itertools.accumulate(n_groups))
    n = min(ends[-1], MAX_PLACES)
    numbers = [k * ends[-1] // n for k in range(n)]
    shards = [bisect.bisect(ends, number) for number in numbers]
    return [(s, k - ends[s] + n_groups[s]) for s, k in zip(shards, numbers, strict=True)]


def divide(sizes: Sequence[int], n_bytes: int) -> list[int]:
    """Divides `n_bytes` evenly over places of these sizes: what one lacks, larger ones give."""
    budgets, left = [0] * len(sizes), n_bytes
    for done, k in enumerate(sorted(range(len(sizes)), key=sizes.__getitem__)):  # small ones first
        budgets[k] = left // (len(sizes) - done)
        left -= min(sizes[k], budgets[k])
    return budgets


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
