"""Opens the token store of a run. To resume, the store is enough: its source may be gone."""

import contextlib
import logging
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from configs.mixture import declared
from configs.workdir import completed
from data_pipeline.mixed_stores import MixedStores, source_configs
from data_pipeline.prepare import prepare, prepare_all, prepared, require
from data_pipeline.sources.find import NoSource
from data_pipeline.token_store import TOKENIZER, Stores
from gptjax.checkpoint import storage
from gptjax.common.workdir import CHECKPOINTS

_log = logging.getLogger(__name__)


def open_store(config: ConfigDict) -> Stores:
    """Returns the stores of `config`; without a source, those of the newest checkpoint.

    One process makes it if needed; several need one that is there.

    Raises:
        DataError: as `prepare` and `require`; NoSource for a new run, for one with another
            data.source or other settings of the data than its checkpoint, and where that store is
            not complete.
    """
    try:
        return prepare_all(config, prepare if jax.process_count() == 1 else require)
    except NoSource as error:
        meta = _newest_meta(Path(config.workdir) / CHECKPOINTS)
        if "store_hash" not in meta or _sources(completed(meta["config"])) != _sources(config):
            raise
        stores = _prepared(config, meta)
        if stores is None:
            raise NoSource(
                f"{error} The run in {config.workdir} could resume without it, but no complete "
                f"store in data.cache_dir = {config.data.cache_dir} has the hash "
                f"{meta['store_hash'][:12]} of its newest checkpoint and these settings."
            ) from error
        paths = ", ".join(f"{s.path} (hash {s.hash[:12]})" for s in stores.sources.values())
        reason = str(error).partition(". ")[0]
        _log.warning("%s. The run resumes from what its checkpoint names: %s.", reason, paths)
        return stores


def _sources(config: ConfigDict) -> tuple[str, ...]:
    mixture = declared(config.data)
    return (config.data.source,) if mixture is None else mixture.sources


def _prepared(config: ConfigDict, meta: dict[str, Any]) -> Stores | None:
    """Returns the complete stores that a checkpoint's meta names; None where one is missing."""
    mixture = declared(config.data)
    if mixture is None:
        return prepared(config, meta["store_hash"])
    # What a tokenizer was trained on cannot be compared without the sources.
    tokenizer = Path(config.tokenizer.file or Path(config.workdir) / TOKENIZER)
    configs = source_configs(config, mixture, tokenizer)
    stores = [
        prepared(alone, meta["store"][name]["hash"])
        for name, alone in zip(mixture.names, configs, strict=True)
    ]
    found = [store for store in stores if store is not None]
    return MixedStores(mixture, found) if len(found) == len(stores) else None


def _newest_meta(folder: Path) -> dict[str, Any]:
    """Returns the meta of the newest checkpoint whose meta is good; {} without one."""
    for step in reversed(storage.list_steps(folder)):
        with contextlib.suppress(storage.Damaged):
            return storage.read_meta(folder / str(step))
    return {}
