"""Prepares a source for training, once: tokenizer, tokens, split and statistics.

    gptjax prepare quickstart

It prints a summary of the store; training finds the store by itself, and prepares it if needed,
but for a run of several processes, which needs it beforehand, where all of them can read it.
Parts of the files (a few chunks each) are encoded by several processes, then joined. A killed
preparation resumes after the last finished part when it is started again; the store is the same.

A store depends on data.source and how it is read (data.text_column, data.id_column, data.split_by,
data.separator, data.messages_column, data.on_corrupt), data.val_fraction, data.drop_duplicates and
the keys of `tokenizer`; data.cache_dir and data.prepare_workers set where it is and how fast it is
made.

Memory: up to 400 MB for each process, as long as no chunk has two documents of 50 MB; 1.5 GB for
the main one. Disk: the store (0.7 times a parquet file) twice, until the parts are joined.
"""

import contextlib
import errno
import functools
import itertools
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from configs import cli
from configs.errors import DataError, UserError
from configs.mixture import declared
from data_pipeline import (
    by_shard,
    duplicates,
    encode,
    join,
    statistics,
    token_store,
    tokenizer_sample,
    worker_pool,
)
from data_pipeline.files import differences, free_bytes, fsync, write_atomically
from data_pipeline.folders import is_address
from data_pipeline.locate import describe, settings_of, store_name, tokenizer_file
from data_pipeline.lock import FileLock
from data_pipeline.mixed_stores import MixedStores, sample_of, shared_tokenizer, source_configs
from data_pipeline.sources.documents import SourceFile
from data_pipeline.sources.known_files import identify
from data_pipeline.statistics import summary
from data_pipeline.token_store import Stores, TokenStore
from data_pipeline.tokenizer import Tokenizer

log = logging.getLogger(__name__)

_UNFINISHED = ".partial"  # suffix of a store that is being made
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def prepare(config: ConfigDict) -> Path:
    """Returns the folder of the token store of `config.data.source`; makes the store if needed.

    Raises:
      DataError: the source is unusable (NoSource: not there), the disk is full, an existing store
        is damaged. Finished parts are kept, and used by the next call.
      UserError: a setting is unusable.
    """
    if by_shard.is_wanted(config):
        return _by_shard(config, may_make=True)
    store, shards, content = describe(config, download=True)
    if not _is_complete(store, content):
        try:
            store.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(store.with_name(f".{store.name}.lock"), wait=True):
                if not _is_complete(store, content):  # made while we waited
                    _make(store, shards, content, config)
        except OSError as e:
            if e.errno not in _DISK_ERRORS:
                raise
            raise DataError(
                f"{store.parent}: the disk is full ({e.strerror}; "
                f"{free_bytes(store.parent):,} bytes are free). Preparing needs about 1.5 "
                "times the size of the source. Free some space, or put the store elsewhere "
                "with --config.data.cache_dir=..., and run again: finished parts are kept."
            ) from e
    _warn_of_damage(TokenStore.open(store))
    return store


def require(config: ConfigDict) -> Path:
    """Returns the folder of the token store of `config.data.source`, which it does not make.

    Raises:
      DataError: as `prepare`; the store is not there.
      UserError: as `prepare`.
    """
    if by_shard.is_wanted(config):
        return _by_shard(config, may_make=False)
    store, _, content = describe(config, download=False)
    if not _is_complete(store, content):
        raise _not_prepared(store, "token store")
    _warn_of_damage(TokenStore.open(store))
    return store


def _by_shard(config: ConfigDict, *, may_make: bool) -> Path:
    data, settings = config.data, settings_of(config)
    name_of = functools.partial(store_name, settings)
    store = by_shard.prepare(config, settings, name_of if may_make else None)
    if store is None:
        raise _not_prepared(data.cache_dir, "token store")
    _warn_of_damage(TokenStore.open(store))
    return store


def _not_prepared(path: Path | str, what: str) -> DataError:
    return DataError(
        f"{path}: there is no {what}, and several processes do not make one. Prepare it once, "
        f"where all can read it, before they start: gptjax prepare, with the "
        f"--config and the --config.KEY=VALUE flags of this run."
    )


def prepare_all(config: ConfigDict, one: Callable[[ConfigDict], Path] = prepare) -> Stores:
    """Opens the store of `config`, or that of each source of its mixture, from `one`.

    `one` is `prepare` or `require`. The sources of a mixture share a tokenizer: tokenizer.file, or
    one that is trained on a sample of all, in proportion to data.mixture. Raises as `one` does.
    """
    mixture = declared(config.data)
    if mixture is None:
        return TokenStore.open(one(config))
    if by_shard.is_wanted(config) and not config.tokenizer.file:
        raise UserError(
            "a mixture that Ray prepares, or whose data.cache_dir is an address, needs a tokenizer "
            "that is there: --config.tokenizer.file=..., such as a workdir's tokenizer.model."
        )
    tokenizer, sources = shared_tokenizer(config, mixture, download=one is not require)
    if sources and not tokenizer.exists():
        if one is require:
            raise _not_prepared(tokenizer, "tokenizer")
        tokenizer.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(tokenizer.with_name(f".{tokenizer.name}.lock"), wait=True):
            if not tokenizer.exists():  # made while we waited
                _train_shared(tokenizer, sample_of(sources, config, mixture), config)
    configs = source_configs(config, mixture, tokenizer)
    return MixedStores(mixture, [TokenStore.open(one(alone)) for alone in configs])


def _train_shared(path: Path, sample: tokenizer_sample.Sample, config: ConfigDict) -> None:
    work = path.with_suffix(_UNFINISHED)
    work.mkdir(exist_ok=True)
    n_parts = sum(n_bytes for _, n_bytes in sample) // encode.PART_BYTES
    with worker_pool.Pool(config.data.prepare_workers, n_parts) as pool:
        tokenizer_sample.train(work / token_store.TOKENIZER, sample, config, pool)
    _check_unchanged([shard for shards, _ in sample for shard in shards], work)
    (work / token_store.TOKENIZER).replace(path)
    fsync(path.parent)
    work.rmdir()


def prepared(config: ConfigDict, store_hash: str) -> TokenStore | None:
    """Returns the complete store of this hash and the settings of `config`; reads no source."""
    data = config.data
    for store in complete_stores(data.local_dir if is_address(data.cache_dir) else data.cache_dir):
        if store.hash == store_hash and store.manifest["settings"] == settings_of(config):
            _warn_of_damage(store)
            return store
    return None


def complete_stores(cache_dir: str) -> Iterator[TokenStore]:
    """Opens the stores in a folder, without those that are unfinished or of another format."""
    for manifest in Path(cache_dir).glob(f"[!.]*/{token_store.MANIFEST}"):
        if manifest.parent.suffix != _UNFINISHED:
            with contextlib.suppress(DataError):
                yield TokenStore.open(manifest.parent)


def _warn_of_damage(store: TokenStore) -> None:
    for line in statistics.damage(store.manifest):
        log.warning(
            "DAMAGED SOURCE, and data.on_corrupt=keep_before: %s. To get them back, download the "
            "file again and delete %s.",
            *(line, store.path),
        )


def _is_complete(store: Path, content: dict[str, Any]) -> bool:
    """Returns whether the store exists; DataError for a damaged one or one of another content."""
    if not store.exists():
        return False
    manifest = TokenStore.open(store).manifest
    if problems := differences({key: manifest[key] for key in content}, content):
        raise DataError(
            f"{store}: this store is not what its name says ({'; '.join(problems[:8])}). Move it "
            "away and run again."
        )
    return True


def _make(
    store: Path, shards: Sequence[SourceFile], content: dict[str, Any], config: ConfigDict
) -> None:
    """Makes the store in a folder `<store>.partial`, which is renamed at the very end."""
    work = store.with_name(f"{store.name}{_UNFINISHED}")
    if not (work / token_store.MANIFEST).exists():
        (work / "parts").mkdir(parents=True, exist_ok=True)
        published = {shard.name: identify(shard.path) for shard in shards}
        for leftover in (*work.glob(".*.tmp"), *work.glob("parts/.*.tmp")):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)
        tokenizer_path = work / token_store.TOKENIZER
        val_fraction = content["settings"]["val_fraction"]
        if keep_before := content["settings"]["on_corrupt"] == "keep_before":
            encode.discard_damaged(work / "parts")
        plan = []
        for i, shard in enumerate(shards):
            prefix = work / "parts" / f"{i:05d}"
            how = (tokenizer_path, val_fraction, keep_before, bool(config.data.messages_column))
            plan.append(encode.plan_parts(shard, prefix, *how))
        parts = list(itertools.chain(*plan))
        n_missing = len(worker_pool.missing(parts))
        try:
            with worker_pool.Pool(config.data.prepare_workers, n_missing) as pool:
                if config.tokenizer.file:  # its hash is in the store's name
                    write_atomically(tokenizer_path, tokenizer_file(config))
                elif not tokenizer_path.exists():
                    sample = [(shards, config.tokenizer.sample_bytes)]
                    tokenizer_sample.train(tokenizer_path, sample, config, pool)
                worker_pool.encode_parts(parts, pool=pool)
        finally:  # also where a part failed: a changing file looks like a damaged one
            _check_unchanged(shards, work)
        tokenizer = Tokenizer.load(tokenizer_path)
        manifest = {
            "format": token_store.FORMAT,
            **content,
            "tokenizer": {"hash": tokenizer.hash, "vocab_size": tokenizer.vocab_size},
            "published": {name: known for name, known in published.items() if known},
            **_join(work, shards, plan, tokenizer.dtype, config.data.drop_duplicates),
        }
        token_store.write_manifest(work, manifest)
    shutil.rmtree(work / "parts", ignore_errors=True)  # not needed once the manifest is written
    work.rename(store)
    fsync(store.parent)
    log.info("the token store is ready: %s", store)


def _check_unchanged(shards: Sequence[SourceFile], work: Path) -> None:
    for path in filter(None, (shard.changed() for shard in shards)):
        shutil.rmtree(work)  # parts of two different files cannot be mixed
        raise DataError(
            f"{path}: the file changed while it was read, so the prepared parts were discarded. "
            "Wait until nothing writes to it (a download?) and run again."
        )


def _join(
    work: Path,
    shards: Sequence[SourceFile],
    plan: Sequence[Sequence[encode.Part]],
    dtype: np.dtype,
    drop: bool,
) -> dict[str, Any]:
    """Joins the parts of each shard; returns the entries of the manifest about the content."""
    ends = [0]  # of each shard's documents

    def hashes() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for parts in plan:
            ends.append(ends[-1])
            for part in parts:
                documents, _ = encode.read_part(part.path)
                ends[-1] += len(documents)
                yield documents["text_hash"], documents["val"]

    found = duplicates.find(hashes(), sum(shard.n_documents for shard in shards), work)
    entries = (
        join.join_shard(
            *(parts, work, i, shard.name),
            val_hashes=found.val_hashes,
            repeats=found.repeats[ends[i] : ends[i + 1]] if drop else None,
            dtype=dtype,
        )
        for i, (shard, parts) in enumerate(zip(shards, plan, strict=True))
    )
    tokenizer = token_store.file_record(work / token_store.TOKENIZER)
    return join.content(entries, found.n_distinct, tokenizer)


def main(config: ConfigDict) -> None:
    """Prepares the sources of `config` and prints a summary of each store."""
    print("\n\n".join(map(summary, prepare_all(config).sources.values())))


if __name__ == "__main__":
    cli.define_config()
    cli.run(main)
