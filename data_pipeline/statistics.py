"""Statistics of a store, for its manifest and its summary."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from configs.errors import DataError
from data_pipeline.token_store import TokenStore

PERCENTILES = (0, 1, 5, 25, 50, 75, 95, 99, 100)


def split_statistics(
    shards: Sequence[Mapping[str, Any]], split: str, lengths: Mapping[int, int]
) -> dict[str, Any]:
    """Sums a split over the shards of a store; DataError where it is empty.

    `lengths` says how many documents have a length in tokens.
    """
    total: Counter[str] = Counter()
    for shard in shards:
        total.update(shard[split])
    if not total["documents"]:
        names = [shard["source"] for shard in shards]
        raise DataError(
            f"{', '.join(names[:8])}{', ...' if len(names) > 8 else ''}: not one document falls "
            f"into the split {split!r}. {'Raise' if split == 'val' else 'Lower'} it with "
            "--config.data.val_fraction=... (documents are chosen by a hash of their id)."
        )
    text_tokens = total["tokens"] - total["documents"]
    values = sorted(lengths)
    ends = np.cumsum([lengths[value] for value in values])  # in a list of all, sorted
    ranks = [round(p / 100 * (ends[-1] - 1)) for p in PERCENTILES]  # the nearest
    percentiles = [values[i] for i in np.searchsorted(ends, ranks, side="right")]
    return {
        "documents": total["documents"],
        "tokens": total["tokens"],  # one BOS a document included
        "tokens_without_bos": text_tokens,
        "bytes": total["bytes"],
        "bytes_per_token": round(total["bytes"] / text_tokens, 4),
        "gpt2_tokens": total["gpt2_tokens"] if total["gpt2_documents"] else None,
        "length_percentiles": dict(zip(map(str, PERCENTILES), percentiles, strict=True)),
    }


def damage(manifest: Mapping[str, Any]) -> list[str]:
    """Returns a line for each damaged place of the source whose documents the store lacks."""
    return [
        f"{d['file']}: {_place(d)}: {d['documents_lost']:,} documents lost, "
        f"{d['documents_kept']:,} beside them kept ({d['reason']})"
        for d in manifest["damaged"]
    ]


def _place(damage: Mapping[str, Any]) -> str:
    if "place" in damage:
        return str(damage["place"])
    return f"row group {damage['row_group']}, column {damage['column']}"  # of an older store


def summary(store: TokenStore) -> str:
    """Returns a few lines about a store, for people."""
    manifest = store.manifest
    lines = [f"store      {store.path}  (hash {store.hash[:12]})"]
    sources = manifest["sources"]
    published = manifest.get("published", {})  # older stores lack it
    for source in sources[:8]:
        lines.append(
            f"source     {source['file']}: {source['documents']:,} documents, "
            f"{source['size_bytes']:,} bytes"
        )
        if known := published.get(source["file"]):
            lines.append(f"           is {known} (size and sha256)")
    if len(sources) > 8:
        lines.append(f"           ... {len(sources):,} files in all")
    lines += [f"DAMAGED    {line}" for line in damage(manifest)]
    lines.append(f"tokenizer  {manifest['tokenizer']['vocab_size']:,} pieces")
    for name, split in manifest["splits"].items():
        gpt2 = split["gpt2_tokens"]
        lines.append(
            f"{name:<10} {split['documents']:,} documents, {split['tokens']:,} tokens, "
            f"{split['bytes']:,} bytes ({split['bytes_per_token']:.2f} bytes per token"
            + (f"; GPT-2 needs {gpt2:,} tokens)" if gpt2 is not None else ")")
        )
        lengths = ", ".join(f"{p} %: {n:,}" for p, n in split["length_percentiles"].items())
        lines.append(f"           tokens in a document, percentiles: {lengths}")
    skipped = [f"{n:,} {reason}" for reason, n in manifest["skipped"].items() if n]
    lines.append(f"left out   {', '.join(skipped) or 'none'}")
    lines.append(f"duplicates {manifest['exact_duplicates']:,} documents repeat an earlier text")
    return "\n".join(lines)
