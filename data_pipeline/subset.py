"""The rows that a run is trained and evaluated on.

Its training documents can be a subset: the same for all seeds, and nested in any larger one.
"""

import functools
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from configs.mixture import Mixture
from configs.validate import raise_problems
from data_pipeline.chat import Chat
from data_pipeline.grouped_rows import Group, GroupedRows, cut, pack
from data_pipeline.mixture import MixtureRows, Schedule
from data_pipeline.packing import DocumentRows, Documents, Rows, permutation
from data_pipeline.token_store import Stores, TokenStore
from data_pipeline.tokenizer import Tokenizer


class Subset:
    """The first `n_tokens` (1 to split.n_tokens) of a split in a fixed order; see `Documents`.

    The order is random, but does not depend on a run's seed. The last document can be cut.
    """

    def __init__(self, split: Documents, n_tokens: int):
        order = permutation(split.n_docs, 0, 0)
        ends = np.cumsum(split.doc_lengths.take(order), dtype=np.int64)
        self.n_docs = int(np.searchsorted(ends, n_tokens)) + 1
        self.n_tokens = n_tokens
        self.doc_lengths = split.doc_lengths.take(order[: self.n_docs])
        self.doc_lengths[-1] -= ends[self.n_docs - 1] - n_tokens
        self._split, self._documents = split, order

    def read(self, doc: int, start: int, stop: int) -> np.ndarray:
        """Returns tokens [start:stop); IndexError where they do not exist."""
        if not (0 <= doc < self.n_docs and 0 <= start <= stop <= self.doc_lengths[doc]):
            raise IndexError(f"tokens {start}:{stop} of document {doc} of a subset")
        return self._split.read(int(self._documents[doc]), start, stop)

    def doc_id(self, doc: int) -> str:
        """Returns the source of a document as `file.parquet:row`."""
        return self._split.doc_id(int(self._documents[doc]))


def split_groups(store: TokenStore, split: str) -> list[Group]:
    """Returns the groups of a split that are packed together; reads no index."""
    counts = [shard[split] for shard in store.manifest["pieces"]]
    groups = cut([count["documents"] for count in counts])
    whole = functools.partial(store.split, split)  # which the store keeps
    return [
        Group(
            sum(counts[i]["tokens"] for i in shards),
            whole if len(groups) == 1 else functools.partial(store.part, split, shards),
        )
        for shards in groups
    ]


def training_groups(store: TokenStore, max_tokens: int) -> list[Group]:
    """Returns the groups of the training split, or of `max_tokens` of it (0: all)."""
    return subset(split_groups(store, "train"), max_tokens)


def subset(groups: list[Group], max_tokens: int) -> list[Group]:
    """Returns `groups`, or so many of their tokens (0: all).

    That is whole groups in a random order, and a `Subset` of one more.
    """
    if not 0 < max_tokens < sum(group.n_tokens for group in groups):
        return groups
    chosen: list[Group] = []
    for i in permutation(len(groups), 0, 0).tolist():
        left = max_tokens - sum(group.n_tokens for group in chosen)
        if left < groups[i].n_tokens:
            part = Group(left, functools.partial(_open_subset, groups[i], left))
            return [*chosen, part] if left else chosen
        chosen.append(groups[i])
    raise AssertionError("max_tokens is less than all groups have")


def _open_subset(group: Group, n_tokens: int) -> Subset:
    return Subset(group.open(), n_tokens)


def training_rows(config: ConfigDict, stores: Stores) -> Rows:
    """Returns the rows that a run is trained on, in the order of its seed."""
    packing = {"seed": config.seed, **_packing(config, stores.tokenizer)}
    groups = [
        training_groups(store, config.data.max_train_tokens) for store in stores.sources.values()
    ]
    rows = [pack(of_a_source, stream=i, **packing) for i, of_a_source in enumerate(groups)]
    if stores.mixture is None:
        return rows[0]
    return MixtureRows(list(stores.sources), rows, schedule(config.train, stores.mixture))


def schedule(train: ConfigDict, mixture: Mixture) -> Schedule:
    """Returns the schedule of a mixture by rows."""
    rows_per_step = train.batch_size * train.gradient_accumulation_steps
    return Schedule([(phase.step * rows_per_step, phase.weights) for phase in mixture.phases])


def validation_rows(config: ConfigDict, store: TokenStore) -> DocumentRows | GroupedRows:
    """Returns the rows of the validation split: in the same order for every run and seed."""
    return pack(split_groups(store, "val"), seed=0, **_packing(config, store.tokenizer))


def evaluation_rows(
    config: ConfigDict, documents: Documents, tokenizer: Tokenizer, *, is_chat: bool
) -> DocumentRows | GroupedRows:
    """Returns the rows of documents to evaluate on, ordered as those of the validation split."""
    group = Group(documents.n_tokens, lambda: documents)
    return pack([group], seed=0, **_packing(config, tokenizer, is_chat=is_chat))


def _packing(
    config: ConfigDict, tokenizer: Tokenizer, is_chat: bool | None = None
) -> dict[str, Any]:
    """Returns arguments of `pack`; `is_chat`: documents are conversations; None: as trained on."""
    is_chat = bool(config.data.messages_column) if is_chat is None else is_chat
    return {
        "block_size": config.model.block_size,
        "bos_id": tokenizer.bos_id,
        "segments": config.data.document_mask,
        "counted": Chat(tokenizer).counted if is_chat else None,
    }


def validate_store(config: ConfigDict, stores: Stores) -> None:
    """Raises UserError with every split that is shorter than a row of the model."""
    block_size, limit = config.model.block_size, config.data.max_train_tokens
    sizes = {
        f"{split} split{f' of {name}' if name else ''}": sum(group.n_tokens for group in groups)
        for name, store in stores.sources.items()
        for split, groups in (
            ("train", training_groups(store, limit)),
            ("val", split_groups(store, "val")),
        )
    }
    raise_problems(
        [
            f"model.block_size = {block_size:,} exceeds the {n_tokens:,} tokens of the {name} "
            f"(data.val_fraction = {config.data.val_fraction}, "
            f"data.max_train_tokens = {limit:,})"
            for name, n_tokens in sizes.items()
            if n_tokens < block_size and not config.data.messages_column  # whose rows are padded
        ]
    )
