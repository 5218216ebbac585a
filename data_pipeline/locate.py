"""Where the token store of a configuration is: its name follows from source and settings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs import base
from configs.errors import DataError
from configs.read import read_bytes
from configs.validate import chat_problems, leaves, raise_problems, range_problems
from data_pipeline import chat, token_store
from data_pipeline.files import hash_json
from data_pipeline.sources.documents import SourceFile
from data_pipeline.sources.find import open_source
from data_pipeline.special_tokens import with_specials
from data_pipeline.tokenizer import MAX_FILE, Tokenizer

# Raise it when the same source and settings would give different tokens or splits.
PREPARATION_VERSION = 2
# Keys of data: how a source is read.
_COLUMNS = ("text_column", "id_column", "split_by", "separator", "messages_column")


def locate(config: ConfigDict, *, download: bool = True) -> tuple[Path, list[SourceFile]]:
    """Returns the (perhaps future) folder of the store of `config`, and its source files.

    Raises:
      DataError: the source is unusable; or it is elsewhere, and `download` is False.
      UserError: a setting is unusable.
    """
    store, shards, _ = describe(config, download=download)
    return store, shards


def describe(
    config: ConfigDict, *, download: bool
) -> tuple[Path, list[SourceFile], dict[str, Any]]:
    """Returns what `locate` does, and what the manifest of the store says of both."""
    settings = settings_of(config)
    shards = open_source(config.data, download=download)
    sources = [shard.identity for shard in shards]
    store = Path(config.data.cache_dir) / store_name(settings, sources)
    return store, shards, {"sources": sources, "settings": settings}


def store_name(settings: dict[str, Any], sources: Sequence[dict[str, Any]]) -> str:
    """Returns the name of the store of these settings and identities of source files."""
    versions = {"format": token_store.FORMAT, "recipe": PREPARATION_VERSION}
    identity = {**versions, "sources": sources, **settings}
    more = f"+{len(sources) - 1}" if len(sources) > 1 else ""
    return f"{Path(sources[0]['file']).stem}{more}-{hash_json(identity)[:12]}"


def settings_of(config: ConfigDict) -> dict[str, Any]:
    """Returns the checked settings that the content of a store depends on."""
    data, tokenizer = config.data, config.tokenizer
    problems = range_problems(leaves(data, "data.") | leaves(tokenizer, "tokenizer."))
    raise_problems([*problems, *chat_problems(config)])
    settings = {"on_corrupt": data.on_corrupt, "val_fraction": float(data.val_fraction)}
    if data.drop_duplicates:  # most stores are older than this key
        settings["drop_duplicates"] = True
    defaults = base.get_config().data  # without them, as in stores from before there were others
    settings |= {key: data[key] for key in _COLUMNS if data[key] != defaults[key]}
    if not tokenizer.file:
        return settings | {key: tokenizer[key] for key in ("vocab_size", "sample_bytes")}
    return settings | {"tokenizer": Tokenizer(tokenizer_file(config), tokenizer.file).hash}


def tokenizer_file(config: ConfigDict) -> bytes:
    """Returns the content of tokenizer.file; for conversations it gets the markers of a chat.

    Raises:
      DataError: it is missing, or cannot get them.
    """
    path = Path(config.tokenizer.file)
    if not path.is_file():
        raise DataError(
            f"tokenizer.file={path}: there is no such file. Name a workdir's tokenizer.model, or "
            "set it to nothing to train a tokenizer."
        )
    model = read_bytes(path, MAX_FILE)
    return with_specials(model, chat.MARKERS, str(path)) if config.data.messages_column else model
