"""Parts: the unit of parallel, resumable work. A shard is cut, encoded and joined by them.

A part is some row groups of a parquet file, encoded: a pure function of the file and the tokenizer.
On disk it is a folder: `documents` (DOCUMENT records), `train` and `val` (uint16 tokens) and
`counts.json` (rows left out, damage). All parts of a shard are joined into its piece of the token
store, in memory that does not grow with the number of tokens.
"""

import collections
import contextlib
import functools
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self

import numpy as np

from configs.errors import DataError
from data_pipeline.files import fsync_folder, write_atomically
from data_pipeline.parquet import Damage, ShardInfo, read_row_group
from data_pipeline.token_store import SPLITS, piece_file, piece_files
from data_pipeline.tokenizer import Tokenizer

PART_BYTES = 4_000_000  # text in a part: about a second of work, the most an interruption loses
DOCUMENT = np.dtype(  # what a part knows of each document: 33 bytes
    [
        ("row", "<u4"),  # in the parquet file
        ("val", "?"),
        ("tokens", "<i4"),  # BOS included
        ("bytes", "<i8"),  # of UTF-8 text
        ("text_hash", "<u8"),  # of the whole text: equal texts are found by it
        ("gpt2_tokens", "<i8"),  # FineWeb's `token_count`; -1: not known
    ]
)
_FLUSH_BYTES = 1 << 22  # tokens a part holds in memory
_COPY_BYTES = 1 << 22


class Part(NamedTuple):
    """What a worker has to know to make one part."""

    path: Path  # the folder that will hold it
    shard: Path
    row_groups: tuple[tuple[int, int], ...]  # (row group, number of its first row in the shard)
    n_documents: int  # rows
    tokenizer: Path
    val_fraction: float
    keep_before: bool = False  # leave out what follows damage in a row group, instead of stopping


def plan_parts(
    shard: ShardInfo,
    prefix: Path,
    *,
    tokenizer: Path,
    val_fraction: float,
    keep_before: bool = False,
) -> list[Part]:
    """Cuts a shard into parts of about PART_BYTES, at row groups; depends on the shard alone."""
    parts: list[Part] = []
    groups: list[tuple[int, int]] = []
    first_row = size = n_documents = 0
    for i, group_size in enumerate(shard.row_group_sizes):
        groups.append((i, first_row))
        first_row += group_size
        n_documents += group_size
        size += shard.text_bytes[i]
        if size >= PART_BYTES or i == shard.n_row_groups - 1:
            path = prefix.with_name(f"{prefix.name}-{len(parts):06d}")
            rows = tuple(groups)
            parts.append(
                Part(path, shard.path, rows, n_documents, tokenizer, val_fraction, keep_before)
            )
            groups, size, n_documents = [], 0, 0
    return parts


def is_val(document_id: str, val_fraction: float) -> bool:
    """Says whether a document belongs to the validation split: by its id, whatever the shard."""
    digest = hashlib.sha256(document_id.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < val_fraction


def encode_part(part: Part) -> int:
    """Encodes one part into its folder; returns its bytes of text."""
    tokenizer = _load_tokenizer(part.tokenizer)
    skipped: collections.Counter[str] = collections.Counter()
    damaged: list[Damage] | None = [] if part.keep_before else None
    n_bytes = 0
    with PartWriter(part.path, tokenizer.bos_id) as writer:
        for i, first_row in part.row_groups:
            for document in read_row_group(part.shard, i, skipped=skipped, damaged=damaged):
                utf8 = document.utf8
                writer.add(
                    tokenizer.encode_utf8(utf8),
                    row=first_row + document.row,
                    is_val=is_val(document.id, part.val_fraction),
                    n_bytes=len(utf8),
                    text_hash=_hash(utf8),
                    gpt2_tokens=-1 if document.token_count is None else document.token_count,
                )
                n_bytes += len(utf8)
        writer.counts = {"skipped": skipped, "damaged": [d._asdict() for d in damaged or ()]}
    return n_bytes


def _hash(utf8: memoryview) -> int:
    """Returns 64 bits that tell a text from others."""
    return int.from_bytes(hashlib.blake2b(utf8, digest_size=8).digest(), "little")


@functools.lru_cache(maxsize=1)
def _load_tokenizer(path: Path) -> Tokenizer:
    """Keeps the tokenizer, and the words it remembers, between the parts a process makes."""
    return Tokenizer.load(path)


class PartWriter:
    """Writes one part: a folder that takes its name only when it is whole.

    Use it in a `with` block: leaving it normally finishes the part, an exception removes it.
    """

    def __init__(self, path: Path, bos_id: int) -> None:
        """`path` is the folder the part will be."""
        self._path = path
        self._folder = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._bos = bos_id.to_bytes(2, "little")
        self._tokens: dict[str, list[bytes]] = {split: [] for split in SPLITS}
        self._documents: list[tuple[int, bool, int, int, int, int]] = []
        self._pending = 0  # bytes of tokens in memory
        self.counts: dict[str, Any] = {}  # stored with the part; the caller fills it

    def __enter__(self) -> Self:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        names = ["documents", *SPLITS]
        self._files = {name: (self._folder / name).open("wb") for name in names}
        return self

    def add(
        self,
        tokens: Iterable[bytes],
        *,
        row: int,
        is_val: bool,
        n_bytes: int,
        text_hash: int,
        gpt2_tokens: int,
    ) -> None:
        """Adds a document; `tokens` are uint16 without BOS, in slices, the rest as in DOCUMENT."""
        pending = self._tokens[SPLITS[is_val]]
        size = 0
        for chunk in itertools.chain((self._bos,), tokens):
            pending.append(chunk)
            size += len(chunk)
            self._pending += len(chunk)
            if self._pending >= _FLUSH_BYTES:
                self._flush()
        self._documents.append((row, is_val, size // 2, n_bytes, text_hash, gpt2_tokens))

    def _flush(self) -> None:
        for split, chunks in self._tokens.items():
            self._files[split].writelines(chunks)
            chunks.clear()
        self._files["documents"].write(np.array(self._documents, DOCUMENT).tobytes())
        self._documents.clear()
        self._pending = 0

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        try:
            if exc_type is None:
                self._flush()
                for f in self._files.values():
                    f.flush()
                    os.fsync(f.fileno())
                write_atomically(self._folder / "counts.json", json.dumps(self.counts).encode())
                try:
                    self._folder.rename(self._path)
                except OSError:
                    if not self._path.is_dir():  # else a twin made the same part: as good
                        raise
                fsync_folder(self._path.parent)
        finally:
            for f in self._files.values():
                with contextlib.suppress(OSError):  # a full disk, told already, is told again here
                    f.close()
            shutil.rmtree(self._folder, ignore_errors=True)


def read_part(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Returns the documents (DOCUMENT records) and the counts of a finished part."""
    documents = np.fromfile(path / "documents", DOCUMENT)
    return documents, json.loads((path / "counts.json").read_text())


def discard_damaged(folder: Path) -> None:
    """Removes the parts that lack documents: the file may have been mended since."""
    for path in sorted(folder.glob("[!.]*")):
        if read_part(path)[1]["damaged"]:
            doomed = path.with_name(f".{path.name}.damaged.tmp")  # never half a part in its place
            path.rename(doomed)
            shutil.rmtree(doomed)


def join_parts(
    parts: Sequence[Part], folder: Path, piece: int, *, val_hashes: np.ndarray
) -> dict[str, Any]:
    """Joins parts, in order, into the files of a piece, and counts what it writes.

    A training document whose text also stands in val would make the validation loss a lie: it is
    left out.

    Args:
      parts: all parts of one shard.
      folder: the store that is being made.
      piece: number of the piece.
      val_hashes: `text_hash` of every validation document of all shards, sorted.

    Returns:
      counts for each split, the number of training documents left out, and a hash of the source's
      usable texts.
    """
    counts: dict[str, Any] = {split: collections.Counter() for split in SPLITS}
    left_out = 0
    content = hashlib.sha256()
    paths = piece_files(folder, piece)
    with _removed_on_error(paths), contextlib.ExitStack() as stack:
        out = {path: stack.enter_context(path.open("wb")) for path in paths}
        for part in parts:
            documents, _ = read_part(part.path)
            content.update(documents[["row", "text_hash"]].tobytes())
            keep = documents["val"] | ~_is_in(documents["text_hash"], val_hashes)
            left_out += int((~keep).sum())
            for split in SPLITS:
                mine = documents["val"] == (split == "val")
                kept = documents[mine & keep]
                counts[split].update(_count(kept))
                out[piece_file(folder, piece, split, "lengths")].write(kept["tokens"].tobytes())
                out[piece_file(folder, piece, split, "rows")].write(kept["row"].tobytes())
                target = out[piece_file(folder, piece, split, "tokens")]
                with (part.path / split).open("rb") as source:
                    _copy_kept(source, target, documents["tokens"][mine], keep[mine])
        for f in out.values():
            f.flush()
            os.fsync(f.fileno())
    fsync_folder(folder)
    return {
        **{split: dict(counts[split]) for split in SPLITS},
        "duplicate_of_val": left_out,
        "content_sha256": content.hexdigest(),
    }


def _is_in(values: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """Says for each value whether it is in `ordered`; np.isin would sort that for each part."""
    if not len(ordered):
        return np.zeros(len(values), bool)
    places = np.searchsorted(ordered, values)
    return ordered[np.minimum(places, len(ordered) - 1)] == values


@contextlib.contextmanager
def _removed_on_error(paths: Sequence[Path]) -> Iterator[None]:
    """Removes half-made files, so that a full disk is a little less full afterwards."""
    try:
        yield
    except BaseException:
        for path in paths:
            path.unlink(missing_ok=True)
        raise


def _count(documents: np.ndarray) -> dict[str, int]:
    known = documents["gpt2_tokens"][documents["gpt2_tokens"] >= 0]
    return {
        "documents": len(documents),
        "tokens": int(documents["tokens"].sum()),
        "bytes": int(documents["bytes"].sum()),
        "gpt2_tokens": int(known.sum()),
        "gpt2_documents": len(known),
    }


def _copy_kept(source: BinaryIO, target: BinaryIO, lengths: np.ndarray, keep: np.ndarray) -> None:
    """Copies the tokens of the documents with keep[i], run by run."""
    edges = np.flatnonzero(np.diff(keep.astype(np.int8), prepend=0, append=0))
    starts = 2 * np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])  # bytes
    for first, last in edges.reshape(-1, 2):
        source.seek(starts[first])
        left = int(starts[last] - starts[first])
        while left:
            chunk = source.read(min(left, _COPY_BYTES))
            if not chunk:
                raise DataError(f"{source.name}: the part is shorter than its index says.")
            target.write(chunk)
            left -= len(chunk)
