"""Packing of a store of a billion documents: seconds to the first row, rows, memory.

    python -m benchmarks.grouped_rows

The store has as many shards as it says, whose files are links to those of one: log-normal lengths
like FineWeb's, and tokens in a file without blocks on the disk (8 bytes a document are written).
Each row crosses the page cache as that of a real store does, but comes from no disk. Memory is that
of the process alone (RssAnon): mapped pages of the token files are the page cache's.
"""

import argparse
import os
import re
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import show
from data_pipeline.grouped_rows import pack
from data_pipeline.subset import split_groups
from data_pipeline.token_store import FORMAT, TokenStore, shard_file


def synthetic_store(folder: Path, n_shards: int, n_documents: int) -> TokenStore:
    """Returns a store of `n_shards` equal shards of a training split."""
    lengths = np.random.default_rng(1).lognormal(np.log(400), 1.0, n_documents)
    lengths = np.clip(lengths, 2, 50_000).astype("<i4")
    n_tokens = int(lengths.sum(dtype=np.int64))
    first = {kind: shard_file(folder, 0, "train", kind) for kind in ("tokens", "lengths", "rows")}
    first["lengths"].write_bytes(lengths.tobytes())
    first["rows"].write_bytes(np.arange(n_documents, dtype="<u4").tobytes())
    with first["tokens"].open("wb") as file:
        file.truncate(2 * n_tokens)
    for i in range(1, n_shards):
        for kind, path in first.items():
            os.link(path, shard_file(folder, i, "train", kind))
    counts = {"documents": n_documents, "tokens": n_tokens, "bytes": 4 * n_tokens}
    manifest = {
        "format": FORMAT,
        **dict.fromkeys(("sources", "settings", "files")),
        "tokenizer": {"vocab_size": 32_768},
        "pieces": [
            {"source": f"{i}.parquet", "content_sha256": "", "train": counts}
            for i in range(n_shards)
        ],
    }
    return TokenStore(folder, manifest)


class PeakMemory:
    """The highest anonymous memory of this process in a `with` block, sampled."""

    def __enter__(self) -> "PeakMemory":
        self.before = self.highest = self._now()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._end.wait(0.01):
            self.highest = max(self.highest, self._now())

    @staticmethod
    def _now() -> int:
        status = Path("/proc/self/status").read_text()
        (found,) = re.findall(r"RssAnon:\s+(\d+) kB", status)
        return 1024 * int(found)


def measure(store: TokenStore, block_size: int, n_rows: int) -> dict[str, Any]:
    """Reads the first rows, those at the middle of the first group, and those at its end."""
    start = time.perf_counter()
    groups = split_groups(store, "train")
    rows = pack(groups, block_size=block_size, seed=1, bos_id=1, segments=False)
    rows[0]
    seconds = time.perf_counter() - start
    of_a_group = -(-groups[0].n_tokens // block_size)
    medians, slowest = [], 0.0
    for first in (1, of_a_group // 2 - n_rows // 2, of_a_group - n_rows // 2):
        times = []
        for g in range(first, first + n_rows):
            start = time.perf_counter()
            rows[g]
            times.append(time.perf_counter() - start)
        medians.append(statistics.median(times))
        slowest = max(slowest, *times)
    return {
        "documents": sum(piece["train"]["documents"] for piece in store.manifest["pieces"]),
        "groups": len(groups),
        "rows an epoch": rows.rows_per_epoch,
        "first row, s": seconds,
        "median row, us": 1e6 * max(medians),
        "slowest row, ms": 1e3 * slowest,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--documents", type=int, default=1_000_000, help="of a shard")
    parser.add_argument("--block-size", type=int, default=1024)
    parser.add_argument("--rows", type=int, default=20_000, help="to read at each of three places")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = synthetic_store(Path(folder), arguments.shards, arguments.documents)
        with PeakMemory() as memory:
            result = measure(store, arguments.block_size, arguments.rows)
        bounds = {"peak, GB": memory.highest / 1e9, "before, GB": memory.before / 1e9}
        show("grouped rows", [{**result, **bounds}])


if __name__ == "__main__":
    main()
