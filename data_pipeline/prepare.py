"""Prepares parquet files for training, once: tokenizer, tokens, split and statistics.

    python -m data_pipeline.prepare --config=configs/quickstart.py

It prints a summary of the store; training finds the store by itself, and prepares it if needed.
Parts of the files (a few row groups each) are encoded by several processes, then joined. A killed
preparation resumes after the last finished part when it is started again; the store is the same.

A store depends on data.source, data.val_fraction, data.on_corrupt and the keys of `tokenizer`;
data.cache_dir and data.prepare_workers set where it is and how fast it is made.

Memory: up to 400 MB for each process, as long as no row group has two documents of 50 MB; 1.5 GB
for the main one. Disk: the store (about 0.7 times the parquet file) twice, until the parts are
joined.
"""

import collections
import contextlib
import errno
import itertools
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from configs import cli
from configs.errors import DataError
from data_pipeline import encode, parquet, statistics, token_store, tokenizer_sample, worker_pool
from data_pipeline.files import differences, fsync, hash_json, write_atomically
from data_pipeline.known_files import identify
from data_pipeline.lock import FileLock
from data_pipeline.parquet import ShardInfo
from data_pipeline.statistics import summary
from data_pipeline.token_store import SPLITS, TokenStore
from data_pipeline.tokenizer import Tokenizer, train_from_counts

log = logging.getLogger(__name__)

# Raise it when the same source and settings would give different tokens or splits.
PREPARATION_VERSION = 2
ON_DAMAGE = ("stop", "keep_before")
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def prepare(config: ConfigDict, *, progress: bool = True) -> Path:
    """Returns the folder of the token store of `config.data.source`; makes the store if needed.

    Raises:
      DataError: the source or a setting is unusable, the disk is full, an existing store is
        damaged. Finished parts are kept, and used by the next call.
    """
    store, shards = locate(config)
    settings, sources = _settings(config), [shard.identity() for shard in shards]
    if not _is_complete(store, sources, settings):
        with _disk_errors(store):
            store.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(store.with_name(f".{store.name}.lock"), wait=True):
                if not _is_complete(store, sources, settings):  # made while we waited
                    _make(store, shards, settings, config, progress=progress)
    for line in statistics.damage(TokenStore.open(store).manifest):
        log.warning(
            "DAMAGED SOURCE, and data.on_corrupt=keep_before: %s. To get them back, download the "
            "file again and delete %s.",
            *(line, store),
        )
    return store


def locate(config: ConfigDict) -> tuple[Path, list[ShardInfo]]:
    """Returns the (perhaps future) folder of the store of `config`, and its source files.

    Raises:
      DataError: the source or a setting is unusable.
    """
    settings = _settings(config)
    shards = [parquet.inspect(path) for path in parquet.find_shards(config.data.source)]
    sources = [shard.identity() for shard in shards]
    identity = {
        "format": token_store.FORMAT,
        "recipe": PREPARATION_VERSION,
        "sources": sources,
        **settings,
    }
    more = f"+{len(shards) - 1}" if len(shards) > 1 else ""
    name = f"{shards[0].path.stem}{more}-{hash_json(identity)[:12]}"
    return Path(config.data.cache_dir) / name, shards


def _settings(config: ConfigDict) -> dict[str, Any]:
    """Returns the checked settings that the content of a store depends on."""
    if not 0 < config.data.val_fraction < 1:
        raise DataError(
            f"data.val_fraction={config.data.val_fraction}: must lie between 0 and 1, for example "
            "0.005."
        )
    if config.tokenizer.sample_bytes < 1 or config.data.prepare_workers < 0:
        raise DataError(
            f"tokenizer.sample_bytes={config.tokenizer.sample_bytes} must be at least 1 and "
            f"data.prepare_workers={config.data.prepare_workers} at least 0."
        )
    if config.data.on_corrupt not in ON_DAMAGE:
        raise DataError(
            f"data.on_corrupt={config.data.on_corrupt!r}: must be one of {', '.join(ON_DAMAGE)}."
        )
    settings = {
        "on_corrupt": config.data.on_corrupt,
        "val_fraction": float(config.data.val_fraction),
    }
    if not config.tokenizer.file:
        sample_bytes = config.tokenizer.sample_bytes
        return settings | {"vocab_size": config.tokenizer.vocab_size, "sample_bytes": sample_bytes}
    if not Path(config.tokenizer.file).is_file():
        raise DataError(
            f"tokenizer.file={config.tokenizer.file}: there is no such file. Name a workdir's "
            "tokenizer.model, or set it to nothing to train a tokenizer."
        )
    return settings | {"tokenizer": Tokenizer.load(config.tokenizer.file).hash}


def _is_complete(store: Path, sources: list[dict[str, Any]], settings: dict[str, Any]) -> bool:
    """Returns whether the store exists; DataError for a damaged one or one of another source."""
    if not store.exists():
        return False
    manifest = TokenStore.open(store).manifest
    saved = {key: manifest[key] for key in ("sources", "settings")}
    if problems := differences(saved, {"sources": sources, "settings": settings}):
        raise DataError(
            f"{store}: this store is not what its name says ({'; '.join(problems[:8])}). Move it "
            "away and run again."
        )
    return True


@contextlib.contextmanager
def _disk_errors(store: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        if e.errno not in _DISK_ERRORS:
            raise
        folder = next(p for p in (store.parent, *store.parent.parents) if p.exists())
        raise DataError(
            f"{store.parent}: the disk is full ({e.strerror}; {shutil.disk_usage(folder).free:,} "
            "bytes are free). Preparing needs about 1.5 times the size of the parquet files. Free "
            "some space, or put the store elsewhere with --config.data.cache_dir=..., and run "
            "again: finished parts are kept."
        ) from e


def _make(
    store: Path,
    shards: Sequence[ShardInfo],
    settings: dict[str, Any],
    config: ConfigDict,
    *,
    progress: bool,
) -> None:
    """Makes the store in a folder `<store>.partial`, which is renamed at the very end."""
    work = store.with_name(f"{store.name}.partial")
    if not (work / token_store.MANIFEST).exists():
        (work / "parts").mkdir(parents=True, exist_ok=True)
        published = {shard.path.name: identify(shard.path) for shard in shards}
        for leftover in (*work.glob(".*.tmp"), *work.glob("parts/.*.tmp")):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)
        keep_before = settings["on_corrupt"] == "keep_before"
        if keep_before:
            encode.discard_damaged(work / "parts")
        plan = [
            encode.plan_parts(
                shard,
                work / "parts" / f"{i:05d}",
                tokenizer=work / token_store.TOKENIZER,
                val_fraction=settings["val_fraction"],
                keep_before=keep_before,
            )
            for i, shard in enumerate(shards)
        ]
        parts = list(itertools.chain(*plan))
        tokenizer_path, n_missing = work / token_store.TOKENIZER, len(worker_pool.missing(parts))
        try:
            with worker_pool.Pool(config.data.prepare_workers, n_missing) as pool:
                if config.tokenizer.file:  # its hash is in the store's name
                    write_atomically(tokenizer_path, Path(config.tokenizer.file).read_bytes())
                tokenizer = _tokenizer(tokenizer_path, shards, settings, pool)
                worker_pool.encode_parts(parts, pool=pool, progress=progress)
        finally:  # also where a part failed: a changing file looks like a damaged one
            _check_unchanged(shards, work)
        manifest = {
            "format": token_store.FORMAT,
            "sources": [shard.identity() for shard in shards],
            "settings": settings,
            "tokenizer": {"hash": tokenizer.hash, "vocab_size": tokenizer.vocab_size},
            "published": {name: known for name, known in published.items() if known},
            **_join(work, shards, plan),
        }
        token_store.write_manifest(work, manifest)
    shutil.rmtree(work / "parts", ignore_errors=True)  # not needed once the manifest is written
    work.rename(store)
    fsync(store.parent)
    log.info("the token store is ready: %s", store)


def _check_unchanged(shards: Sequence[ShardInfo], work: Path) -> None:
    for shard in shards:
        try:
            unchanged = parquet.inspect(shard.path) == shard
        except (DataError, OSError):
            unchanged = False
        if not unchanged:
            shutil.rmtree(work)  # parts of two different files cannot be mixed
            raise DataError(
                f"{shard.path}: the file changed while it was read, so the prepared parts were "
                "discarded. Wait until nothing writes to it (a download?) and run again."
            )


def _tokenizer(
    path: Path, shards: Sequence[ShardInfo], settings: dict[str, Any], pool: worker_pool.Pool
) -> Tokenizer:
    """Returns the tokenizer at `path`, given or of an interrupted call, or trains it."""
    if path.exists():
        return Tokenizer.load(path)
    start = time.monotonic()
    total, sample_bytes = sum(sum(s.text_bytes) for s in shards), settings["sample_bytes"]
    log.info(
        "training the tokenizer (%d pieces) on %.1f MB of %.1f MB of text, spread evenly",
        *(settings["vocab_size"], min(sample_bytes, total) / 1e6, total / 1e6),
    )
    places = tokenizer_sample.plan_sample(
        shards,
        sample_bytes,
        val_fraction=settings["val_fraction"],
        keep_before=settings["on_corrupt"] == "keep_before",
    )
    counts: collections.Counter[str] = collections.Counter()
    for _, place_counts in pool.run(tokenizer_sample.count_place, places):
        counts.update(place_counts)  # in any order: they are summed
    tokenizer = train_from_counts(counts, vocab_size=settings["vocab_size"], path=path)
    log.info("trained the tokenizer in %.1f s", time.monotonic() - start)
    return tokenizer


def _join(
    work: Path, shards: Sequence[ShardInfo], plan: Sequence[Sequence[encode.Part]]
) -> dict[str, Any]:
    """Joins the parts of each shard; returns the entries of the manifest about the content."""
    skipped = collections.Counter(null_text=0, null_id=0, empty_text=0, invalid_utf8=0)
    damaged: list[dict[str, Any]] = []
    val_hashes = []  # 8 bytes a document
    n_documents = 0
    every_part = list(itertools.chain(*plan))
    for part in every_part:
        documents, counts = encode.read_part(part.path)
        skipped.update(counts["skipped"])
        damaged += ({"file": part.shard.name, **damage} for damage in counts["damaged"])
        val_hashes.append(documents["text_hash"][documents["val"]])
        n_documents += len(documents)

    def all_hashes() -> Iterator[np.ndarray]:
        return (encode.read_part(part.path)[0]["text_hash"] for part in every_part)

    in_val = np.unique(np.concatenate(val_hashes))
    joined, files = [], [work / token_store.TOKENIZER]
    for i, (shard, parts) in enumerate(zip(shards, plan, strict=True)):
        counts = encode.join_parts(parts, work, i, val_hashes=in_val)
        skipped["duplicate_of_val"] += counts.pop("duplicate_of_val")
        joined.append({"source": shard.path.name, **counts})
        files += token_store.shard_files(work, i)
    return {
        "splits": {split: statistics.split_statistics(work, joined, split) for split in SPLITS},
        "usable_documents": n_documents,
        "exact_duplicates": n_documents - statistics.count_distinct(all_hashes, n_documents),
        "skipped": dict(skipped),
        "damaged": damaged,
        "pieces": joined,
        "files": {path.name: token_store.file_record(path) for path in files},
    }


def main(config: ConfigDict) -> None:
    """Prepares the source of `config` and prints a summary of the store."""
    print(summary(TokenStore.open(prepare(config))))


if __name__ == "__main__":
    cli.define_config()
    cli.run(main)
