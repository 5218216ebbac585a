"""Tokens a second that one core loads: our pipeline, nanoGPT's and Grain's packers, on one store.

    python -m benchmarks.loader --source=../shared/data/bench.parquet --vocab-size=16384

All give batches of int rows [B, T] and targets. What they promise differs:

    gptjax     every token an input and a target once an epoch; a restart is one number
    get_batch  nanoGPT's: windows at random places, some tokens never, some often; no document ids
    Grain      concat-then-split drops no token; first-fit and best-fit fill up rows with padding,
               which does not count here, and need documents that are no longer than a row
"""

import argparse
import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grain
import numpy as np

from benchmarks.measure import alternate, show, use_one_core
from configs import base
from data_pipeline.loader import BatchIterator
from data_pipeline.packing import PackedRows
from data_pipeline.prepare import prepare
from data_pipeline.token_store import Split, TokenStore, shard_file

BINS = 128  # open rows of first-fit and best-fit: more, less padding


def ours(split: Split, *, batch_size: int, block_size: int, segments: bool) -> Iterator[int]:
    rows = PackedRows(split, block_size=block_size, seed=1, bos_id=1, segments=segments)
    for batch in BatchIterator(rows, batch_size=batch_size, micro_steps=1):
        yield batch["inputs"].size


def get_batch(path: Path, *, batch_size: int, block_size: int) -> Iterator[int]:
    """NanoGPT's loader, with NumPy instead of PyTorch."""
    rng = np.random.default_rng(1)
    while True:
        data = np.memmap(path, np.uint16, "r")  # opened for each batch, as nanoGPT does
        starts = rng.integers(len(data) - block_size, size=batch_size)
        x = np.stack([data[i : i + block_size].astype(np.int64) for i in starts])
        y = np.stack([data[i + 1 : i + 1 + block_size].astype(np.int64) for i in starts])
        yield min(x.size, y.size)


class _Documents:
    """Grain source of documents; with `longest`, of spans of at most so many tokens."""

    def __init__(self, split: Split, longest: int | None) -> None:
        self._split = split
        self._spans = [
            (d, i, min(i + (longest or n), n))
            for d, n in enumerate(split.doc_lengths.tolist())
            for i in range(0, n, longest or n)
        ]

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        return {"tokens": self._split.read(*self._spans[int(i)])}


def grains(
    split: Split,
    pack: Callable[..., grain.IterDataset],
    *,
    batch_size: int,
    block_size: int,
    longest: int | None = None,
) -> Iterator[int]:
    """Yields the tokens but padding of each batch of rows of T + 1 from one of Grain's packers."""
    documents = grain.MapDataset.source(_Documents(split, longest)).shuffle(1).repeat()
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    packed = pack(documents.to_iter_dataset(options), length_struct={"tokens": block_size + 1})
    for batch in packed.batch(batch_size):
        tokens, segments = batch["tokens"].astype(np.int32), batch["tokens_segment_ids"]
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        assert inputs.shape == targets.shape == (batch_size, block_size)
        yield int((segments[:, 1:] > 0).sum())


def grain_packers(split: Split, *, batch_size: int, block_size: int) -> dict[str, Iterator[int]]:
    sizes = {"batch_size": batch_size, "block_size": block_size}
    concat = grain.experimental.ConcatThenSplitIterDataset
    first = functools.partial(grain.experimental.FirstFitPackIterDataset, num_packing_bins=BINS)
    best = functools.partial(grain.experimental.BestFitPackIterDataset, num_packing_bins=BINS)
    return {
        "Grain concat-then-split": grains(split, concat, **sizes),
        "Grain first-fit": grains(split, first, **sizes, longest=block_size + 1),
        "Grain best-fit": grains(split, best, **sizes, longest=block_size + 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", required=True, help="parquet file; prepared where needed")
    parser.add_argument("--cache-dir", default="data/stores")
    parser.add_argument("--vocab-size", type=int, default=32_768)
    parser.add_argument("--block-size", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each turn in each round")
    arguments = parser.parse_args()
    config = base.get_config()
    config.data.source, config.data.cache_dir = arguments.source, arguments.cache_dir
    config.tokenizer.vocab_size = arguments.vocab_size
    store = TokenStore.open(prepare(config))
    use_one_core()
    split = store.split("train")
    sizes = {"batch_size": arguments.batch_size, "block_size": arguments.block_size}
    loaders = {
        "gptjax": ours(split, **sizes, segments=False),
        "gptjax, segment_ids and positions": ours(split, **sizes, segments=True),
        "nanoGPT get_batch": get_batch(shard_file(store.path, 0, "train", "tokens"), **sizes),
        **grain_packers(split, **sizes),
    }

    def turn(loader: Iterator[int]) -> float:
        start, n = time.perf_counter(), 0
        while (seconds := time.perf_counter() - start) < arguments.seconds:
            n += next(loader)
        return n / seconds

    turns = {name: functools.partial(turn, loader) for name, loader in loaders.items()}
    results = alternate(turns, arguments.rounds)
    title = (
        f"tokens/s on one core, B = {arguments.batch_size}, T = {arguments.block_size}, "
        f"{split.n_docs:,} documents of {split.n_tokens / split.n_docs:.0f} tokens on average"
    )
    show(title, [{"loader": name, **rates} for name, rates in results.items()])


if __name__ == "__main__":
    main()
