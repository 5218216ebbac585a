"""What a store's manifest says of its content: an entry for each shard, and their sum."""

import collections
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline import encode, statistics, token_store
from data_pipeline.token_store import SPLITS


def join_shard(
    parts: Sequence[encode.Part], folder: Path, number: int, name: str, **how: Any
) -> dict[str, Any]:
    """Joins the parts of a shard into its files in `folder`; returns its entry: JSON.

    For `how`, see `encode.join_parts`. The entry is a function of the shard and of `how`.
    """
    skipped: collections.Counter[str] = collections.Counter()
    damaged = []
    n_documents = 0
    for part in parts:
        documents, counts = encode.read_part(part.path)
        skipped.update(counts["skipped"])
        damaged += [{"file": name, **damage} for damage in counts["damaged"]]
        n_documents += len(documents)
    counts = encode.join_parts(parts, folder, number, **how)
    skipped.update(counts.pop("dropped"))
    files = token_store.shard_files(folder, number)
    return {
        "piece": {"source": name, **counts},
        "skipped": dict(skipped),
        "damaged": damaged,
        "usable_documents": n_documents,
        "lengths": {split: _lengths(folder, number, split) for split in SPLITS},
        "files": {path.name: token_store.file_record(path) for path in files},
    }


def _lengths(folder: Path, number: int, split: str) -> list[list[int]]:
    """Returns the lengths of a shard's documents, sorted, and how many have each."""
    lengths = np.fromfile(token_store.shard_file(folder, number, split, "lengths"), "<i4")
    return [part.tolist() for part in np.unique(lengths, return_counts=True)]


def content(
    entries: Iterable[dict[str, Any]], n_distinct: int, tokenizer: dict[str, Any]
) -> dict[str, Any]:
    """Returns the entries of a manifest about the content, from those of all shards in order.

    `tokenizer` is the `file_record` of the tokenizer. What is in memory of an entry are its files
    and counts.
    """
    skipped = collections.Counter(null_text=0, null_id=0, empty_text=0, invalid_utf8=0)
    lengths: dict[str, collections.Counter[int]] = {s: collections.Counter() for s in SPLITS}
    pieces, damaged, files = [], [], {token_store.TOKENIZER: tokenizer}
    n_documents = 0
    for entry in entries:
        pieces.append(entry["piece"])
        skipped.update(entry["skipped"])
        damaged += entry["damaged"]
        n_documents += entry["usable_documents"]
        files |= entry["files"]
        for split in SPLITS:
            lengths[split].update(dict(zip(*entry["lengths"][split], strict=True)))
    return {
        "splits": {
            split: statistics.split_statistics(pieces, split, lengths[split]) for split in SPLITS
        },
        "usable_documents": n_documents,
        "exact_duplicates": n_documents - n_distinct,
        "skipped": dict(skipped),
        "damaged": damaged,
        "pieces": pieces,
        "files": files,
    }
