"""The text that the tokenizer is trained on: a bounded, evenly spread, reproducible sample.

It is taken from the starts of evenly spaced chunks ("places"). Their sizes alone decide how much
each gives, so any number of processes may count their words, in any order.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from data_pipeline.encode import is_val
from data_pipeline.sources.documents import Chunk, Damage, SourceFile
from data_pipeline.tokenizer import MAX_SLICE, count_words

MAX_PLACES = 256


class Place(NamedTuple):
    """A chunk to sample from: the argument of `count_place`."""

    chunk: Chunk
    n_bytes: int  # UTF-8 of text, at most
    val_fraction: float
    keep_before: bool  # of damage: see data.on_corrupt


def plan_sample(
    shards: Sequence[SourceFile], n_bytes: int, val_fraction: float, keep_before: bool = False
) -> list[Place]:
    """Divides `n_bytes` evenly over places; what a small chunk lacks, larger ones give."""
    chunks = [chunk for shard in shards for chunk in shard.chunks]
    n = min(len(chunks), MAX_PLACES)
    chosen = [chunks[k * len(chunks) // n] for k in range(n)]
    budgets, left = [0] * n, n_bytes
    for done, k in enumerate(sorted(range(n), key=lambda k: chosen[k].text_bytes)):
        budgets[k] = left // (n - done)  # of the small ones first
        left -= min(chosen[k].text_bytes, budgets[k])
    return [
        Place(chunk, budget, val_fraction, keep_before)
        for chunk, budget in zip(chosen, budgets, strict=True)
    ]


def texts(place: Place) -> Iterator[str]:
    """Yields the training texts of a place, `place.n_bytes` of UTF-8 at most."""
    left = place.n_bytes
    damaged: list[Damage] | None = [] if place.keep_before else None
    for document in place.chunk.read(damaged=damaged):
        if left <= 0:
            return
        if not is_val(document.id, place.val_fraction):
            utf8 = document.utf8[: min(left, MAX_SLICE)]  # of a long document only the beginning
            left -= len(utf8)
            yield str(utf8, "utf-8", "ignore")  # it may end within a character


def count_place(place: Place) -> Counter[str]:
    """Counts the words of a place."""
    return count_words(texts(place))
