"""What preparing the data of a run will take, before it starts: download, time, disk."""

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from data_pipeline.cores import usable_cores
from data_pipeline.files import free_bytes
from data_pipeline.folders import is_address
from data_pipeline.progress import format_seconds
from data_pipeline.sources.documents import SourceFile
from data_pipeline.sources.download import Remote
from data_pipeline.sources.find import Unit
from data_pipeline.token_ids import token_dtype

# Bytes per token of SentencePiece BPE by log2 of its pieces: up to 8,192 measured on the bundled
# shard, above that GPT-2's 50,257 pieces on English web text.
_LOG2_PIECES, _BYTES_PER_TOKEN = (9, 11, 13, 15, 16), (1.9, 3.1, 4.1, 4.5, 4.65)
_RATE = 15e6  # bytes of text that a core encodes in a second; a Xeon 17e6 (benchmarks/LOG.md)
_BYTES_PER_DOCUMENT = 3_000  # of text, FineWeb's mean
# Bytes of text in a byte of a file that is elsewhere: FineWeb's; English under gzip and zstd.
_TEXT_BYTES = {".parquet": 1.5, ".gz": 2.7, ".zst": 2.7}
_STORE_BYTES = 8  # of a document, beside its tokens: its length and its row


class Preparation(NamedTuple):
    """What is known of a source that is not prepared."""

    text_bytes: float  # UTF-8, an estimate
    n_documents: float
    download_bytes: float = 0.0  # of its files that are elsewhere

    def n_tokens(self, vocab_size: int) -> float:
        """Returns about how many tokens it has, BOS included."""
        return self.text_bytes / bytes_per_token(vocab_size) + self.n_documents


def bytes_per_token(vocab_size: int) -> float:
    """Returns about how many bytes of English a token has, BOS apart."""
    return float(np.interp(math.log2(vocab_size), _LOG2_PIECES, _BYTES_PER_TOKEN))


def of_files(files: Iterable[SourceFile]) -> Preparation:
    """Returns that of files on this disk."""
    sizes = [(float(file.text_bytes), float(file.n_documents)) for file in files]
    return Preparation(*map(sum, zip(*sizes, strict=True)))


def of_units(units: Iterable[Unit]) -> Preparation:
    """Returns that of files elsewhere, of which only the size is known."""
    files = [file for unit in units for _, file in unit.files if isinstance(file, Remote)]
    return of_sizes({file.name: file.size for file in files})


def of_sizes(sizes: dict[str, int]) -> Preparation:
    """Returns that of files elsewhere, by name, of so many bytes."""
    text = sum(_TEXT_BYTES.get(Path(name).suffix, 1.0) * size for name, size in sizes.items())
    return Preparation(text, text / _BYTES_PER_DOCUMENT, float(sum(sizes.values())))


def describe(config: ConfigDict, todo: Sequence[Preparation]) -> Iterator[str]:
    """Yields what preparing these sources takes, in a line, if there are any."""
    if not todo:
        return
    text_bytes, n_documents, download_bytes = map(sum, zip(*todo, strict=True))
    vocab_size = config.tokenizer.vocab_size
    cores = config.data.prepare_workers or len(usable_cores())
    n_tokens = sum(source.n_tokens(vocab_size) for source in todo)
    disk = _gb(n_tokens * token_dtype(vocab_size).itemsize + _STORE_BYTES * n_documents)
    free = ""
    if not is_address(config.data.cache_dir):
        free = f", of {_gb(free_bytes(Path(config.data.cache_dir)))} that are free"
    download = f"a download of {_gb(download_bytes)}; " if download_bytes else ""
    yield (
        f"{download}about {format_seconds(text_bytes / (_RATE * cores))} to encode "
        f"{_gb(text_bytes)} of text, {cores} x {_RATE / 1e6:.0f} MB a second assumed; "
        f"{disk} of disk, twice that until the store is done{free}"
    )


def _gb(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:,.{1 if n_bytes >= 1e10 else 2 if n_bytes >= 1e8 else 4}f} GB"
