"""Makes a parquet file of the size and layout of one FineWeb shard out of a smaller one.

    python -m benchmarks.make_fineweb_like --source=bench.parquet --out=/tmp/fineweb.parquet

At full size: 1,091,396 documents in 1,092 row groups, nine columns, snappy, about 3.2 GB of text
and 2.15 GB of file, like CC-MAIN-2013-20/000_00000.parquet; minutes, in bounded memory. A document
is a passage of the source with a log-normal length, in which some words are replaced by others and
some by invented ones: so texts do not repeat, compress like web text, and keep a tokenizer meeting
unknown words. `token_count` is estimated from the length. The file is a function of the arguments
alone. It serves to measure size and speed, not learning.
"""

import argparse
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.sources.known_files import FINEWEB

FILE_MB = FINEWEB.size_bytes / 1e6
GROUP = 1000  # documents in a row group
MEDIAN_CHARS, SIGMA = 1750, 1.0  # of the log-normal length: 2,900 bytes on average
MAX_CHARS = 500_000
BORROWED, INVENTED = 0.06, 0.026  # shares of words replaced by another word, and by a new one

SCHEMA = pa.schema(
    [
        ("text", pa.string()),
        ("id", pa.string()),
        ("dump", pa.string()),
        ("url", pa.string()),
        ("date", pa.string()),
        ("file_path", pa.string()),
        ("language", pa.string()),
        ("language_score", pa.float64()),
        ("token_count", pa.int64()),
    ]
)


class Maker:
    """Makes row groups; each is a function of the source, the seed and its number."""

    def __init__(self, source: Path, seed: int) -> None:
        table = pq.read_table(source, columns=["text", "token_count"])
        self._corpus = "\n\n".join(table["text"].to_pylist())
        self._tokens_per_char = sum(table["token_count"].to_pylist()) / len(self._corpus)
        self._words = sorted({w for w in self._corpus.split() if w.isalpha() and len(w) > 3})
        self._seed = seed

    def group(self, number: int, n: int) -> dict[str, list[Any]]:
        """Returns the columns of one row group of `n` documents."""
        rng = np.random.default_rng([self._seed, number])
        lengths = np.minimum(rng.lognormal(np.log(MEDIAN_CHARS), SIGMA, n), MAX_CHARS).astype(int)
        texts = [self._text(rng, length) for length in lengths]
        segments = rng.integers(0, 100, n)
        return {
            "text": texts,
            "id": [f"<urn:uuid:{uuid.UUID(bytes=rng.bytes(16))}>" for _ in range(n)],
            "dump": ["CC-MAIN-2024-51"] * n,
            "url": [
                "https://www.{}{}.com/{}/{}-{}-{}-{}".format(*w, i).lower()
                for w, i in zip(self._choose(rng, (n, 6)), rng.integers(10**6, size=n), strict=True)
            ],
            "date": [
                f"2024-12-{d + 1:02d}T{s // 3600:02d}:{s // 60 % 60:02d}:{s % 60:02d}Z"
                for d, s in zip(rng.integers(14, size=n), rng.integers(86400, size=n), strict=True)
            ],
            "file_path": [
                f"s3://commoncrawl/crawl-data/CC-MAIN-2024-51/segments/17330{s:02d}066035.30/warc/"
                f"CC-MAIN-20241201{s:02d}1848-20241201{s:02d}4848-{i:05d}.warc.gz"
                for s, i in zip(segments, rng.integers(900, size=n), strict=True)
            ],
            "language": ["en"] * n,
            "language_score": rng.uniform(0.65, 1, n).tolist(),
            "token_count": [max(1, round(self._tokens_per_char * len(t))) for t in texts],
        }

    def _text(self, rng: np.random.Generator, length: int) -> str:
        start = int(rng.integers(len(self._corpus) - MAX_CHARS))
        start = self._corpus.find(" ", start) + 1
        words = self._corpus[start : start + length].split(" ")
        places = rng.integers(len(words), size=round(BORROWED * len(words)))
        for place, word in zip(places, self._choose(rng, len(places)), strict=True):
            words[place] = word
        places = rng.integers(len(words), size=round(INVENTED * len(words)))
        for place, (head, tail) in zip(places, self._choose(rng, (len(places), 2)), strict=True):
            words[place] = head[: len(head) // 2 + 1] + tail[len(tail) // 2 :]
        return " ".join(words)

    def _choose(self, rng: np.random.Generator, shape: Any) -> Any:
        """Returns words, nested in lists like `shape`."""

        def look_up(numbers: Any) -> Any:
            return [look_up(i) if isinstance(i, list) else self._words[i] for i in numbers]

        return look_up(rng.integers(len(self._words), size=shape).tolist())


def tables(maker: Maker, n_documents: int) -> Iterator[pa.Table]:
    """Yields the row groups."""
    for number, first in enumerate(range(0, n_documents, GROUP)):
        columns = maker.group(number, min(GROUP, n_documents - first))
        yield pa.Table.from_pydict(columns, SCHEMA)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", type=Path, required=True, help="parquet file to take text from")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument("--size-mb", type=float, default=FILE_MB, help="of the file, in 10^6 bytes")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    n_documents = max(1, round(FINEWEB.n_documents * arguments.size_mb / FILE_MB))
    maker = Maker(arguments.source, arguments.seed)
    start, done, n_bytes = time.monotonic(), 0, 0
    partial = arguments.out.with_name(f"{arguments.out.name}.partial")
    with pq.ParquetWriter(partial, SCHEMA, compression="snappy") as writer:
        for table in tables(maker, n_documents):
            writer.write_table(table, row_group_size=GROUP)
            done += table.num_rows
            n_bytes += table["text"].nbytes
            if sys.stderr.isatty() or done == n_documents:
                seconds = time.monotonic() - start
                print(
                    f"\r{done:,} of {n_documents:,} documents, {n_bytes / 1e6:,.0f} MB of text, "
                    f"{seconds:.0f} s",
                    end="",
                    file=sys.stderr,
                )
    print(file=sys.stderr)
    partial.rename(arguments.out)
    metadata = pq.read_metadata(arguments.out)
    print(
        f"{arguments.out}: {arguments.out.stat().st_size:,} bytes, {metadata.num_rows:,} "
        f"documents, {metadata.num_row_groups:,} row groups, {n_bytes:,} bytes of text"
    )


if __name__ == "__main__":
    main()
