"""The tokens of a run: those of its stores, or an estimate before they are prepared."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from configs import base
from configs.errors import DataError, UserError
from configs.mixture import Mixture, declared
from configs.rtx4070 import EXPECTED_TOKENS
from data_pipeline.folders import is_address
from data_pipeline.locate import locate
from data_pipeline.mixed_stores import shared_tokenizer, source_configs
from data_pipeline.sources.documents import NoSource
from data_pipeline.sources.find import list_units
from data_pipeline.sources.known_files import FINEWEB
from data_pipeline.subset import schedule, training_groups
from data_pipeline.token_store import Stores, TokenStore
from gptjax.plan import preparation
from gptjax.plan.preparation import Preparation


@dataclasses.dataclass(frozen=True)
class Data:
    """Tokens of one or all sources, BOS included; None if unknown."""

    train_tokens: int | None
    val_tokens: int | None
    origin: str  # of the figures; or why they are unknown
    sources: Mapping[str, "SourceData"] = dataclasses.field(default_factory=dict)  # of a mixture
    preparation: Preparation | None = None  # of a single source; None: prepared, or unknown

    @property
    def parts(self) -> dict[str, "SourceData"]:
        """The sources by their names; a single one has none."""
        return {**self.sources} or {"": SourceData(1.0, self)}

    @property
    def unprepared(self) -> list[Preparation]:
        """What is to prepare of its sources."""
        return [p for part in self.parts.values() if (p := part.data.preparation) is not None]

    @property
    def pass_tokens(self) -> float | None:
        """Tokens of training until one source was read whole; None if unknown."""
        if self.train_tokens is None:
            return None
        return min(part.pass_tokens for part in self.parts.values())


class SourceData(NamedTuple):
    """A source's part in the run."""

    share: float  # of the run's tokens
    data: Data

    @property
    def pass_tokens(self) -> float:
        """Tokens of training until this source was read whole."""
        assert self.data.train_tokens is not None
        return self.data.train_tokens / self.share if self.share else math.inf


def find(config: ConfigDict) -> Data:
    """Returns what is known of the data of `config` without preparing it."""
    mixture = declared(config.data)
    if mixture is None:
        return _find(config)
    try:
        tokenizer, _ = shared_tokenizer(config, mixture, download=False)
    except DataError as error:
        return Data(None, None, _unknown(error))
    configs = source_configs(config, mixture, tokenizer if tokenizer.exists() else None)
    return _mixed(config, mixture, map(_find, configs))


def _unknown(error: UserError) -> str:
    return f"not known: {str(error).partition('. ')[0]}"


def _mixed(config: ConfigDict, mixture: Mixture, sources: Iterable[Data]) -> Data:
    """Returns the data of a mixture, from that of each of its sources."""
    train = config.train
    n_rows = train.max_iters * train.batch_size * train.gradient_accumulation_steps
    counts = schedule(train, mixture).counts(n_rows)
    parts = [SourceData(n / n_rows, data) for n, data in zip(counts, sources, strict=True)]
    train_tokens = _total([part.data.train_tokens for part in parts])
    val_tokens = _total([part.data.val_tokens for part in parts])
    origin = "; ".join(dict.fromkeys(part.data.origin for part in parts))
    return Data(train_tokens, val_tokens, origin, dict(zip(mixture.names, parts, strict=True)))


def _total(tokens: Sequence[int | None]) -> int | None:
    known = [n for n in tokens if n is not None]
    return sum(known) if len(known) == len(tokens) else None


def _find(config: ConfigDict) -> Data:
    """Returns what is known of a single source."""
    data = config.data
    try:
        store_path, files = locate(config, download=False)
        if store_path.exists():
            return _stored(config, TokenStore.open(store_path))
        return _estimated(config, preparation.of_files(files), "the size of the text")
    except NoSource as error:
        if is_address(data.source):
            return _elsewhere(config)
        if data.source != base.get_config().data.source:
            return Data(None, None, _unknown(error))
    except DataError as error:
        return Data(None, None, _unknown(error))
    todo = preparation.of_sizes({FINEWEB.path: FINEWEB.size_bytes})
    origin = "expected (one FineWeb file of 2.15 GB): the source is not there yet"
    return _split(config, EXPECTED_TOKENS, origin, todo)


def _elsewhere(config: ConfigDict) -> Data:
    """Returns an estimate from the sizes of files that are not downloaded."""
    try:
        todo = preparation.of_units(list_units(config.data))
    except UserError as error:
        return Data(None, None, _unknown(error))
    return _estimated(config, todo, "the size of files that are not downloaded")


def _estimated(config: ConfigDict, todo: Preparation, what: str) -> Data:
    vocab_size = config.tokenizer.vocab_size
    rate = f"{preparation.bytes_per_token(vocab_size):.1f} bytes a token"
    origin = f"estimated from {what}, at {rate}; exact once prepared"
    return _split(config, round(todo.n_tokens(vocab_size)), origin, todo)


def stored(config: ConfigDict, stores: Stores) -> Data:
    """Returns the tokens of the stores that `config` uses."""
    data = [_stored(config, store) for store in stores.sources.values()]
    return data[0] if stores.mixture is None else _mixed(config, stores.mixture, data)


def _stored(config: ConfigDict, store: TokenStore) -> Data:
    train = training_groups(store, config.data.max_train_tokens)
    n_train = sum(group.n_tokens for group in train)
    return Data(n_train, store.manifest["splits"]["val"]["tokens"], "in the store")


def _split(config: ConfigDict, tokens: int, origin: str, todo: Preparation) -> Data:
    val_tokens = round(config.data.val_fraction * tokens)
    train_tokens = min(tokens - val_tokens, config.data.max_train_tokens or tokens)
    return Data(train_tokens, val_tokens, origin, preparation=todo)
