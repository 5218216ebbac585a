"""Opens the token store of a run. To resume, the store is enough: its source may be gone."""

import contextlib
import logging
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from data_pipeline.prepare import prepare, prepared, require
from data_pipeline.sources.find import NoSource
from data_pipeline.token_store import TokenStore
from gptjax.checkpoint import storage
from gptjax.common.workdir import CHECKPOINTS

_log = logging.getLogger(__name__)


def open_store(config: ConfigDict) -> TokenStore:
    """Returns the store of `config`; without its source, that of the newest checkpoint.

    One process makes it if needed; several need one that is there.

    Raises:
        DataError: as `prepare` and `require`; NoSource for a new run, for one with another
            data.source or other settings of the data than its checkpoint, and where that store is
            not complete.
    """
    try:
        return TokenStore.open(prepare(config) if jax.process_count() == 1 else require(config))
    except NoSource as error:
        meta = _newest_meta(Path(config.workdir) / CHECKPOINTS)
        if "store_hash" not in meta or meta["config"]["data"]["source"] != config.data.source:
            raise
        store = prepared(config, meta["store_hash"])
        if store is None:
            raise NoSource(
                f"{error} The run in {config.workdir} could resume without it, but no complete "
                f"store in data.cache_dir = {config.data.cache_dir} has the hash "
                f"{meta['store_hash'][:12]} of its newest checkpoint and these settings."
            ) from error
        _log.warning(
            "data.source = %s is not there. The run resumes from the store that its checkpoint "
            "names: %s (hash %s).",
            *(config.data.source, store.path, store.hash[:12]),
        )
        return store


def _newest_meta(folder: Path) -> dict[str, Any]:
    """Returns the meta of the newest checkpoint whose meta is good; {} without one."""
    for step in reversed(storage.list_steps(folder)):
        with contextlib.suppress(storage.Damaged):
            return storage.read_meta(folder / str(step))
    return {}
