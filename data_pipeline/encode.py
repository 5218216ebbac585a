"""Encodes shards in parts, the unit of parallel, resumable work, and joins these into the store.

A part is a few encoded row groups of a parquet file: a pure function of the file and the tokenizer.
On disk it is a folder: `documents` (DOCUMENT records), `train` and `val` (uint16 tokens) and
`counts.json` (skipped rows, damage). The parts of a shard are joined into its files in the token
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
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self

import numpy as np

from configs.errors import DataError
from data_pipeline.files import fsync, write_atomically
from data_pipeline.parquet import Damage, ShardInfo, read_row_group
from data_pipeline.token_store import SPLITS, shard_file, shard_files
from data_pipeline.tokenizer import Tokenizer

PART_BYTES = 4_000_000  # text in a part: about a second of work, the most an interruption loses
DOCUMENT = np.dtype(  # of a part, 33 bytes
    [
        ("row", "<u4"),  # in the parquet file
        ("val", "?"),
        ("tokens", "<i4"),  # BOS included
        ("bytes", "<i8"),  # of UTF-8 text
        ("text_hash", "<u8"),  # of the whole text, to find equal ones
        ("gpt2_tokens", "<i8"),  # FineWeb's `token_count`; -1: unknown
    ]
)
_FLUSH_BYTES = 1 << 22  # tokens a part holds in memory
_COPY_BYTES = 1 << 22


class Part(NamedTuple):
    """The argument of `encode_part`."""

    path: Path  # folder to write
    shard: Path
    row_groups: tuple[tuple[int, int], ...]  # (row group, its first row in the shard)
    n_documents: int  # rows
    tokenizer: Path
    val_fraction: float
    keep_before: bool = False  # skip what follows damage in a row group, instead of failing


def plan_parts(
    shard: ShardInfo,
    prefix: Path,
    *,
    tokenizer: Path,
    val_fraction: float,
    keep_before: bool = False,
) -> list[Part]:
    """Cuts a shard into parts of about PART_BYTES, at row groups; depends on the shard alone."""
    first_rows = [0, *itertools.accumulate(shard.row_group_sizes)]
    parts: list[Part] = []
    start = size = 0
    for i, n_bytes in enumerate(shard.text_bytes, 1):
        size += n_bytes
        if size >= PART_BYTES or i == shard.n_row_groups:
            path = prefix.with_name(f"{prefix.name}-{len(parts):06d}")
            groups = tuple(enumerate(first_rows[start:i], start))
            source = (shard.path, groups, first_rows[i] - first_rows[start])
            parts.append(Part(path, *source, tokenizer, val_fraction, keep_before))
            start, size = i, 0
    return parts


def is_val(document_id: str, val_fraction: float) -> bool:
    """Returns whether a document is in the validation split: a function of its id alone."""
    digest = hashlib.sha256(document_id.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < val_fraction


def encode_part(part: Part) -> int:
    """Encodes one part into its folder; returns its bytes of UTF-8."""
    tokenizer = _load_tokenizer(part.tokenizer)
    skipped: collections.Counter[str] = collections.Counter()
    damaged: list[Damage] | None = [] if part.keep_before else None
    n_bytes = 0
    with PartWriter(part.path, tokenizer.bos_id) as writer:
        for i, first_row in part.row_groups:
            for document in read_row_group(part.shard, i, skipped=skipped, damaged=damaged):
                utf8 = document.utf8
                digest = hashlib.blake2b(utf8, digest_size=8).digest()
                writer.add(
                    tokenizer.encode_utf8(utf8),
                    row=first_row + document.row,
                    is_val=is_val(document.id, part.val_fraction),
                    n_bytes=len(utf8),
                    text_hash=int.from_bytes(digest, "little"),
                    gpt2_tokens=-1 if document.token_count is None else document.token_count,
                )
                n_bytes += len(utf8)
        writer.counts = {"skipped": skipped, "damaged": [d._asdict() for d in damaged or ()]}
    return n_bytes


# One tokenizer a process, so that the words it has cached serve all parts.
_load_tokenizer = functools.lru_cache(maxsize=1)(Tokenizer.load)


class PartWriter:
    """Context that writes one part: renamed to `path` when complete, removed after an exception."""

    def __init__(self, path: Path, bos_id: int) -> None:
        self._path = path
        self._folder = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._bos = bos_id.to_bytes(2, "little")
        self._tokens: dict[str, list[bytes]] = {split: [] for split in SPLITS}
        self._documents: list[tuple[int, bool, int, int, int, int]] = []
        self._pending = 0  # bytes of tokens in memory
        self.counts: dict[str, Any] = {}  # counts.json; filled by the caller

    def __enter__(self) -> Self:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        self._files = {n: (self._folder / n).open("wb") for n in ("documents", *SPLITS)}
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
        """Adds a document: slices of uint16 tokens without BOS, and the fields of DOCUMENT."""
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
                    if not self._path.is_dir():  # another process has written the same part
                        raise
                fsync(self._path.parent)
        finally:
            for f in self._files.values():
                with contextlib.suppress(OSError):  # a full disk, which was reported already
                    f.close()
            shutil.rmtree(self._folder, ignore_errors=True)


def read_part(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Returns the documents (DOCUMENT records) and the counts of a finished part."""
    documents = np.fromfile(path / "documents", DOCUMENT)
    return documents, json.loads((path / "counts.json").read_text())


def discard_damaged(folder: Path) -> None:
    """Removes the parts that lack documents: the file may have been repaired since."""
    for path in sorted(folder.glob("[!.]*")):
        if read_part(path)[1]["damaged"]:
            doomed = path.with_name(f".{path.name}.damaged.tmp")  # rename first: it is atomic
            path.rename(doomed)
            shutil.rmtree(doomed)


def join_parts(
    parts: Sequence[Part], folder: Path, shard: int, *, val_hashes: np.ndarray
) -> dict[str, Any]:
    """Joins all parts of a shard, in order, into its files in the store.

    Training documents whose text is also in val are dropped: they would bias the validation loss.

    `val_hashes` is the sorted `text_hash` of every validation document of all shards. Returns the
    shard's entry of the manifest: counts by split, the number of dropped documents, and a hash of
    the source's usable texts.
    """
    counts: dict[str, Any] = {split: collections.Counter() for split in SPLITS}
    left_out = 0
    content = hashlib.sha256()
    paths = shard_files(folder, shard)
    with contextlib.ExitStack() as on_error, contextlib.ExitStack() as stack:
        for path in paths:  # an incomplete file would occupy a full disk
            on_error.callback(path.unlink, missing_ok=True)
        out = {path: stack.enter_context(path.open("wb")) for path in paths}
        for part in parts:
            documents, _ = read_part(part.path)
            content.update(documents[["row", "text_hash"]].tobytes())
            keep = documents["val"] | ~_is_in(documents["text_hash"], val_hashes)
            left_out += int((~keep).sum())
            for split in SPLITS:
                mine = documents["val"] == (split == "val")
                kept = documents[mine & keep]
                gpt2_tokens = kept["gpt2_tokens"][kept["gpt2_tokens"] >= 0]
                counts[split].update(
                    documents=len(kept),
                    tokens=int(kept["tokens"].sum()),
                    bytes=int(kept["bytes"].sum()),
                    gpt2_tokens=int(gpt2_tokens.sum()),
                    gpt2_documents=len(gpt2_tokens),
                )
                out[shard_file(folder, shard, split, "lengths")].write(kept["tokens"].tobytes())
                out[shard_file(folder, shard, split, "rows")].write(kept["row"].tobytes())
                target = out[shard_file(folder, shard, split, "tokens")]
                with (part.path / split).open("rb") as source:
                    _copy_kept(source, target, documents["tokens"][mine], keep[mine])
        for f in out.values():
            f.flush()
            os.fsync(f.fileno())
        on_error.pop_all()
    fsync(folder)
    return {
        **{split: dict(counts[split]) for split in SPLITS},
        "duplicate_of_val": left_out,
        "content_sha256": content.hexdigest(),
    }


def _is_in(values: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """Returns np.isin(values, ordered), which would sort `ordered` for each part."""
    if not len(ordered):
        return np.zeros(len(values), bool)
    places = np.searchsorted(ordered, values)
    return ordered[np.minimum(places, len(ordered) - 1)] == values


def _copy_kept(source: BinaryIO, target: BinaryIO, lengths: np.ndarray, keep: np.ndarray) -> None:
    """Copies the tokens of the documents i with keep[i], run by run."""
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
