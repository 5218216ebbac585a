"""The token stores of a mixture: one for each source, all with the same tokenizer."""

import copy
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs.errors import UserError
from configs.mixture import Mixture
from data_pipeline.files import hash_json
from data_pipeline.locate import locate
from data_pipeline.sources.documents import SourceFile
from data_pipeline.token_store import TokenStore
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizer_sample import divide


class MixedStores:
    """The opened stores of a mixture; see `token_store.Stores`."""

    def __init__(self, mixture: Mixture, stores: Sequence[TokenStore]):
        """Takes the store of each source; UserError where two sources have the same content."""
        self.mixture: Mixture = mixture
        self.sources = dict(zip(mixture.names, stores, strict=True))
        first: dict[str, str] = {}  # source of each content
        for name, store in self.sources.items():
            other = first.setdefault(hash_json(store.identity["content"]), name)
            if other != name:
                raise UserError(
                    f"data.mixture: the sources {other} and {name} have the same documents. Name "
                    "one of them, with the sum of their weights."
                )
        assert len({store.manifest["tokenizer"]["hash"] for store in stores}) == 1
        self.hash = hash_json([store.hash for store in stores])
        self.identity: dict[str, Any] = {
            name: {**store.identity, "hash": store.hash} for name, store in self.sources.items()
        }

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of all; DataError where a store has another one than its tokens."""
        return [store.tokenizer for store in self.sources.values()][0]


def source_configs(
    config: ConfigDict, mixture: Mixture, tokenizer: Path | None
) -> list[ConfigDict]:
    """Returns the configuration of each source as the only one, with `tokenizer` or its own."""
    configs = []
    for source in mixture.sources:
        alone = copy.deepcopy(config)
        alone.data.source = source
        alone.data.mixture, alone.data.mixture_schedule, alone.data.mixture_file = (), (), ""
        alone.tokenizer.file = "" if tokenizer is None else str(tokenizer)
        configs.append(alone)
    return configs


def shared_tokenizer(
    config: ConfigDict, mixture: Mixture, *, download: bool
) -> tuple[Path, list[list[SourceFile]]]:
    """Returns the (perhaps future) tokenizer of a mixture, and the files that it is trained on."""
    if config.tokenizer.file:
        return Path(config.tokenizer.file), []
    alone = source_configs(config, mixture, None)
    stores, sources = zip(*(locate(c, download=download) for c in alone), strict=True)
    identity = hash_json([[store.name for store in stores], mixture.weights])
    return Path(config.data.cache_dir, "tokenizers", f"{identity[:12]}.model"), list(sources)


def sample_of(
    sources: Sequence[Sequence[SourceFile]], config: ConfigDict, mixture: Mixture
) -> list[tuple[Sequence[SourceFile], int]]:
    """Returns the sources, each with its part of the text that their tokenizer is trained on."""
    sizes = [sum(file.text_bytes for file in files) for files in sources]
    parts = divide(sizes, config.tokenizer.sample_bytes, mixture.weights)
    return list(zip(sources, map(min, sizes, parts), strict=True))
