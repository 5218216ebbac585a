"""Finds documents of equal text by their hashes, in memory that does not grow with their number.

The hashes are divided by their highest bits into buckets, temporary files that are then read one
after the other. So each hash is read twice, and what is in memory is a bucket of about AT_ONCE.
"""

import contextlib
import math
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

AT_ONCE = 1 << 23  # documents of a bucket: half a GB while it is sorted
MAX_BUCKETS = 512  # files open at a time; beyond 4e9 documents, buckets grow
_RECORD = np.dtype([("hash", "<u8"), ("order", "<u8")])  # of two equal texts, the lower order stays
_TRAIN = np.uint64(1 << 63)  # in `order`: after all of val


class Duplicates(NamedTuple):
    """What the texts of all documents have in common."""

    n_distinct: int
    val_hashes: np.ndarray  # uint64, sorted: the hash of each text in val, once
    repeats: np.ndarray  # bool [n], in a file: an equal text stays, of val, or else the first one


def find(documents: Iterable[tuple[np.ndarray, np.ndarray]], n: int, folder: Path) -> Duplicates:
    """Compares documents, given as arrays of (hash of the text, whether in val), at most `n`.

    They count from 0 in the order given. The temporary files, of up to 17 `n` bytes, are in
    `folder`; they have no names, and vanish with this process.
    """
    bits = max(0, math.ceil(math.log2(max(1, n) / AT_ONCE)))
    n_buckets = min(1 << bits, MAX_BUCKETS)
    val_hashes = [np.zeros(0, "<u8")]
    first = n_distinct = 0
    with contextlib.ExitStack() as stack:
        buckets = [
            stack.enter_context(tempfile.TemporaryFile(dir=folder)) for _ in range(n_buckets)
        ]
        for hashes, val in documents:
            val_hashes.append(hashes[val])
            records = np.empty(len(hashes), _RECORD)
            records["hash"] = hashes
            records["order"] = np.arange(first, first + len(hashes), dtype="<u8")
            records["order"][~val] |= _TRAIN
            first += len(hashes)
            _divide(records, buckets)
        repeats = _empty(stack.enter_context(tempfile.TemporaryFile(dir=folder)), first)
        for bucket in buckets:
            n_distinct += _compare(bucket, repeats)
    return Duplicates(n_distinct, np.unique(np.concatenate(val_hashes)), repeats)


def contains(sorted_hashes: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """Returns, for each of `hashes`, whether it is in `sorted_hashes` (both uint64): bool."""
    if not sorted_hashes.size:
        return np.zeros(len(hashes), bool)
    places = np.searchsorted(sorted_hashes, hashes)
    return sorted_hashes[np.minimum(places, sorted_hashes.size - 1)] == hashes


def _divide(records: np.ndarray, buckets: Sequence[IO[bytes]]) -> None:
    """Appends records to the buckets of their hashes."""
    if len(buckets) == 1:
        buckets[0].write(records.data)
        return
    numbers = records["hash"] >> np.uint64(64 - (len(buckets) - 1).bit_length())
    ends = np.searchsorted(np.sort(numbers), np.arange(len(buckets)), side="right")
    parts = np.split(records[np.argsort(numbers, kind="stable")], ends[:-1])
    for bucket, part in zip(buckets, parts, strict=True):
        bucket.write(part.data)


def _empty(file: IO[bytes], n: int) -> np.ndarray:
    """Returns False [n] in a file, which is as long as the array exists."""
    file.truncate(max(n, 1))
    return np.memmap(file, bool, "r+", shape=(n,)) if n else np.zeros(0, bool)


def _compare(bucket: IO[bytes], repeats: np.ndarray) -> int:
    """Marks the repeats of a bucket; returns how many distinct hashes it has.

    It is read in pieces, so that one text that is repeated a billion times needs no more memory.
    """
    bucket.seek(0)
    best = np.empty(0, _RECORD)
    while data := bucket.read(AT_ONCE * _RECORD.itemsize):
        records = np.concatenate([best, np.frombuffer(data, _RECORD)])
        records = records[np.lexsort((records["order"], records["hash"]))]
        again = records["hash"][1:] == records["hash"][:-1]
        repeats[(records["order"][1:][again] & ~_TRAIN).astype(np.int64)] = True
        best = records[np.concatenate([[True], ~again])]
    return len(best)
