"""The text that the tokenizer is trained on: a bounded, evenly spread, reproducible sample.

It is taken from the starts of evenly spaced chunks ("places"). Their sizes alone decide how much
each gives, so any number of processes may count their words, in any order.
"""

import bisect
import itertools
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from data_pipeline.encode import is_val
from data_pipeline.progress import BatchProgress, Waiting
from data_pipeline.sources.documents import Chunk, Damage, SourceFile
from data_pipeline.tokenizer import MAX_SLICE, count_words, train_from_counts
from data_pipeline.worker_pool import Pool

log = logging.getLogger(__name__)

MAX_PLACES = 256
Sample = Sequence[tuple[Sequence[SourceFile], int]]  # files, and bytes of their text


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
    chosen = choose([len(shard.chunks) for shard in shards])
    chunks = [shards[shard].chunks[i] for shard, i in chosen]
    budgets = divide([chunk.text_bytes for chunk in chunks], n_bytes)
    return [
        Place(chunk, budget, val_fraction, keep_before)
        for chunk, budget in zip(chunks, budgets, strict=True)
    ]


def choose(n_chunks: Sequence[int]) -> list[tuple[int, int]]:
    """Returns (shard, chunk) of at most MAX_PLACES evenly spaced ones, given their numbers."""
    ends = list(itertools.accumulate(n_chunks))
    n = min(ends[-1], MAX_PLACES)
    numbers = [k * ends[-1] // n for k in range(n)]
    shards = [bisect.bisect(ends, number) for number in numbers]
    return [(s, k - ends[s] + n_chunks[s]) for s, k in zip(shards, numbers, strict=True)]


def divide(sizes: Sequence[int], n_bytes: int, weights: Sequence[int] = ()) -> list[int]:
    """Divides `n_bytes` over places of these sizes: what one lacks, larger ones give.

    Evenly, or by weight; the parts of those that lack some are larger than they are.
    """
    weights = weights or [1] * len(sizes)
    parts, left, weight_left = [0] * len(sizes), n_bytes, sum(weights)
    for i in sorted(range(len(sizes)), key=lambda i: sizes[i] / weights[i]):  # small ones first
        parts[i] = left * weights[i] // weight_left
        left -= min(sizes[i], parts[i])
        weight_left -= weights[i]
    return parts


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


def train(path: Path, sample: Sample, config: ConfigDict, pool: Pool) -> None:
    """Trains a tokenizer on so many bytes of some files, and so many of others."""
    start = time.monotonic()
    total = sum(shard.text_bytes for shards, _ in sample for shard in shards)
    vocab_size, n_bytes = config.tokenizer.vocab_size, sum(n for _, n in sample)
    log.info(
        "training the tokenizer (%d pieces) on %.1f MB of %.1f MB of text, spread evenly",
        *(vocab_size, min(n_bytes, total) / 1e6, total / 1e6),
    )
    keep_before = config.data.on_corrupt == "keep_before"
    places = [
        place
        for shards, n in sample
        for place in plan_sample(shards, n, config.data.val_fraction, keep_before)
    ]
    counts: Counter[str] = Counter()
    with BatchProgress(
        "counting words", "places", len(places), len(places), last_line=False
    ) as progress:
        for _, place_counts in pool.run(count_place, places):
            counts.update(place_counts)  # in any order: they are summed
            progress.advance(1)
    with Waiting("training the tokenizer"):
        train_from_counts(counts, vocab_size=vocab_size, path=path)
    log.info("trained the tokenizer in %.1f s", time.monotonic() - start)
