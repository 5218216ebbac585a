"""Milliseconds from a saved state to the first batch, and memory of the index.

    python -m benchmarks.restore --documents=1000000

The state is one number, deep in an epoch. The documents are synthetic: log-normal lengths like
FineWeb's, all tokens equal.
"""

import argparse
import functools
import itertools
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import alternate, show, use_one_core
from data_pipeline.loader import BatchIterator
from data_pipeline.packing import PackedRows
from data_pipeline.token_store import TokenStore


class SyntheticSplit:
    """A split for `PackedRows` without a store."""

    def __init__(self, n_docs: int) -> None:
        lengths = np.random.default_rng(1).lognormal(np.log(400), 1.0, n_docs)
        self.doc_lengths = np.clip(lengths, 2, 50_000).astype(np.int32)
        self.n_docs, self.n_tokens = n_docs, int(self.doc_lengths.sum(dtype=np.int64))
        self._tokens = np.full(int(self.doc_lengths.max()), 1, np.uint16)

    def read(self, doc: int, start: int, stop: int) -> np.ndarray:
        """Returns a view, like the memory map of a store."""
        assert 0 <= start <= stop <= self.doc_lengths[doc]
        return self._tokens[start:stop]


def first_batch(split: Any, *, block_size: int, batch_size: int, seed: int) -> float:
    """Returns the milliseconds of a restore a third into epoch 2."""
    start = time.perf_counter()
    rows = PackedRows(split, block_size=block_size, seed=seed, bos_id=1, segments=False)
    state = {"next_row": 2 * rows.rows_per_epoch + rows.rows_per_epoch // 3}
    next(BatchIterator(rows, batch_size=batch_size, micro_steps=1, state=state))
    return 1e3 * (time.perf_counter() - start)


def index_bytes(split: Any, block_size: int) -> tuple[int, int, int]:
    """Returns the bytes of the order of one epoch, of two (where they meet), and the peak."""
    tracemalloc.start()
    rows = PackedRows(split, block_size=block_size, seed=0, bos_id=1, segments=False)
    rows[0]
    one, _ = tracemalloc.get_traced_memory()
    rows[rows.rows_per_epoch]
    two, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return one, two, peak


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--store", type=Path, help="a prepared store to time as well, opening it")
    parser.add_argument("--block-size", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    use_one_core()
    sizes = {"block_size": arguments.block_size, "batch_size": arguments.batch_size}
    seeds = itertools.count()

    def restore(split: Any) -> float:
        return first_batch(split, seed=next(seeds), **sizes)

    def open_and_restore() -> float:
        start = time.perf_counter()
        split = TokenStore.open(arguments.store).split("train")
        return 1e3 * (time.perf_counter() - start) + restore(split)

    splits = {n: SyntheticSplit(n) for n in arguments.documents}
    contenders: dict[str, Callable[[], float]] = {
        f"{n:,} documents": functools.partial(restore, split) for n, split in splits.items()
    }
    if arguments.store:
        contenders[f"{arguments.store.name}, opened first"] = open_and_restore
    results = alternate(contenders, arguments.rounds)
    show(
        "restore: ms from a state to the first batch, one core",
        [{"index": name, **times} for name, times in results.items()],
    )
    memory = []
    for n, split in splits.items():
        one, two, peak = (size / n for size in index_bytes(split, arguments.block_size))
        memory.append({"documents": n, "one_epoch": one, "two_epochs": two, "peak": peak})
    show("order of the epoch: bytes a document (token_store.Split has 12 more)", memory)


if __name__ == "__main__":
    main()
