"""Encodes shards in parts, the unit of parallel, resumable work, and joins these into the store.

A part is a few encoded chunks of a source file: a pure function of the file and the tokenizer.
On disk it is a folder: `documents` (DOCUMENT records), `train` and `val` (tokens) and
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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from configs.errors import DataError
from configs.read import MIB, read_bytes, read_json
from data_pipeline import duplicates
from data_pipeline.chat import Chat
from data_pipeline.files import fsync, new_files
from data_pipeline.sources import conversations
from data_pipeline.sources.documents import Chunk, Damage, SourceFile
from data_pipeline.token_store import KINDS, SPLITS, shard_file, shard_files
from data_pipeline.tokenizer import MAX_FILE, Tokenizer

PART_BYTES = 4_000_000  # text in a part: about a second of work, the most an interruption loses
_MAX_COUNTS = 16 * MIB  # bytes: a line for each damaged row group
DOCUMENT = np.dtype(  # of a part, 33 bytes
    [
        ("row", "<u4"),  # in the file
        ("val", "?"),
        ("tokens", "<i4"),  # BOS included
        ("bytes", "<i8"),  # of UTF-8 text
        ("text_hash", "<u8"),  # of the whole text, to find equal ones
        ("gpt2_tokens", "<i8"),  # FineWeb's `token_count`; -1: unknown
    ]
)


class Part(NamedTuple):
    """The argument of `encode_part`."""

    path: Path  # folder to write
    shard: str  # name of the source file
    chunks: tuple[Chunk, ...]
    n_documents: int  # rows
    tokenizer: Path
    val_fraction: float
    keep_before: bool = False  # skip what is damaged, instead of failing
    is_chat: bool = False  # documents are conversations


def plan_parts(
    shard: SourceFile,
    prefix: Path,
    tokenizer: Path,
    val_fraction: float,
    keep_before: bool = False,
    is_chat: bool = False,
) -> list[Part]:
    """Cuts a shard into parts of about PART_BYTES, at chunks; depends on the shard alone."""
    parts: list[Part] = []
    start = size = 0
    for i, chunk in enumerate(shard.chunks, 1):
        size += chunk.text_bytes
        if size >= PART_BYTES or i == len(shard.chunks):
            path = prefix.with_name(f"{prefix.name}-{len(parts):06d}")
            chunks = shard.chunks[start:i]
            source = (shard.name, chunks, sum(chunk.rows for chunk in chunks))
            parts.append(Part(path, *source, tokenizer, val_fraction, keep_before, is_chat))
            start, size = i, 0
    return parts


def is_val(document_id: str, val_fraction: float) -> bool:
    """Returns whether a document is in the validation split: a function of its id alone."""
    digest = hashlib.sha256(document_id.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < val_fraction


def hash_text(utf8: bytes | memoryview) -> int:
    """Returns a 64-bit hash of a text, to find equal ones."""
    return int.from_bytes(hashlib.blake2b(utf8, digest_size=8).digest(), "little")


def encode_part(part: Part) -> int:
    """Encodes one part into its folder; returns its bytes of UTF-8."""
    tokenizer = load_tokenizer(part.tokenizer)
    encode_document = _chat_encoder(tokenizer) if part.is_chat else _text_encoder(tokenizer)
    skipped: collections.Counter[str] = collections.Counter()
    damaged: list[Damage] | None = [] if part.keep_before else None
    n_bytes = 0
    with new_part(part.path) as files:
        for chunk in part.chunks:
            for document in chunk.read(skipped=skipped, damaged=damaged):
                utf8, val = document.utf8, is_val(document.id, part.val_fraction)
                tokens, text_bytes = encode_document(utf8)
                size = sum(map(files[SPLITS[val]].write, tokens))
                text_hash = hash_text(utf8)
                gpt2_tokens = -1 if document.token_count is None else document.token_count
                row, n_tokens = chunk.first_row + document.row, size // tokenizer.dtype.itemsize
                record = (row, val, n_tokens, text_bytes, text_hash, gpt2_tokens)
                files["documents"].write(np.array(record, DOCUMENT).tobytes())
                n_bytes += len(utf8)
        counts = {"skipped": skipped, "damaged": [d._asdict() for d in damaged or ()]}
        files["counts.json"].write(json.dumps(counts).encode())
    return n_bytes


Encoded = tuple[Iterable[bytes], int]  # ids of a document, BOS first, in slices; bytes of its text


def _text_encoder(tokenizer: Tokenizer) -> Callable[[bytes | memoryview], Encoded]:
    bos = np.array(tokenizer.bos_id, tokenizer.dtype).tobytes()
    return lambda utf8: (itertools.chain((bos,), tokenizer.encode_utf8(utf8)), len(utf8))


def _chat_encoder(tokenizer: Tokenizer) -> Callable[[bytes | memoryview], Encoded]:
    chat = Chat(tokenizer)

    def encode(utf8: bytes | memoryview) -> Encoded:
        ids = chat.encode(conversations.read(utf8))
        return [np.array(ids, tokenizer.dtype).tobytes()], int(tokenizer.token_bytes[ids].sum())

    return encode


def load_tokenizer(path: Path) -> Tokenizer:
    """Reads a tokenizer, or returns the one that this process had last, if it is the same."""
    return _tokenizer(read_bytes(path, MAX_FILE))


# One tokenizer a process, so that the words it has cached serve all parts, wherever its file is.
_tokenizer = functools.lru_cache(maxsize=1)(Tokenizer)


@contextlib.contextmanager
def new_part(path: Path) -> Iterator[Mapping[str, BinaryIO]]:
    """Opens the files of a part; the folder has its name when they are complete."""
    folder = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        with new_files([folder / name for name in ("documents", *SPLITS, "counts.json")]) as files:
            yield files
        fsync(folder)
        try:
            folder.rename(path)
        except OSError:
            if not path.is_dir():  # another process has written the same part
                raise
        fsync(path.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def read_part(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Returns the documents (DOCUMENT records) and the counts of a finished part."""
    documents = np.fromfile(path / "documents", DOCUMENT)
    return documents, read_json(path / "counts.json", _MAX_COUNTS)


def discard_damaged(folder: Path) -> None:
    """Removes the parts that lack documents: the file may have been repaired since."""
    for path in sorted(folder.glob("[!.]*")):
        if read_part(path)[1]["damaged"]:
            doomed = path.with_name(f".{path.name}.damaged.tmp")  # rename first: it is atomic
            path.rename(doomed)
            shutil.rmtree(doomed)


def join_parts(
    parts: Sequence[Part],
    folder: Path,
    shard: int,
    *,
    val_hashes: np.ndarray,
    repeats: np.ndarray | None,
    dtype: np.dtype,
) -> dict[str, Any]:
    """Joins all parts of a shard, in order, into its files in the store.

    Training documents whose text is also in val are dropped: they would bias the validation loss.

    Args:
      parts: all of them have been encoded.
      folder: of the store.
      shard: its number in the store.
      val_hashes: uint64, sorted: the `text_hash` of every validation document of all shards.
      repeats: bool [documents of the shard], those to drop besides; None: none.
      dtype: of tokens.

    Returns:
      The shard's entry of the manifest: counts by split, the numbers of dropped documents, and a
      hash of the source's usable texts.
    """
    counts: dict[str, collections.Counter[str]] = {s: collections.Counter() for s in SPLITS}
    dropped = collections.Counter(duplicate_of_val=0)
    first = 0
    content = hashlib.sha256()
    with new_files(shard_files(folder, shard)) as files:
        for part in parts:
            documents, _ = read_part(part.path)
            content.update(documents[["row", "text_hash"]].tobytes())
            keep = documents["val"] | ~duplicates.contains(val_hashes, documents["text_hash"])
            dropped["duplicate_of_val"] += int((~keep).sum())
            if repeats is not None:
                again = keep & repeats[first : first + len(documents)]
                dropped["duplicate"] += int(again.sum())
                keep &= ~again
            first += len(documents)
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
                tokens, lengths, rows = (
                    files[shard_file(folder, shard, split, kind).name] for kind in KINDS
                )
                lengths.write(kept["tokens"].tobytes())
                rows.write(kept["row"].tobytes())
                sizes = documents["tokens"][mine] * np.int64(dtype.itemsize)
                _copy_kept(part.path / split, tokens, sizes, keep[mine])
    fsync(folder)
    return {
        **{split: dict(counts[split]) for split in SPLITS},
        "dropped": dict(dropped),
        "content_sha256": content.hexdigest(),
    }


def _copy_kept(source: Path, target: BinaryIO, sizes: np.ndarray, keep: np.ndarray) -> None:
    """Copies the documents i, of sizes[i] bytes, with keep[i], run by run."""
    starts = np.cumsum(np.append(0, sizes))
    if source.stat().st_size < starts[-1]:
        raise DataError(f"{source}: the part is shorter than its index says.")
    runs = np.flatnonzero(np.diff(keep, prepend=False, append=False)).reshape(-1, 2)
    for first, last in runs:
        offset, size = int(starts[first]), int(starts[last] - starts[first])
        target.write(np.memmap(source, "u1", "r", offset, size).data)  # mapped: it can be large
