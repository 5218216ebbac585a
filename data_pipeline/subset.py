"""The rows that a run is trained and evaluated on.

Its training documents can be a subset: the same for all seeds, and nested in any larger one.
"""

import numpy as np
from ml_collections import ConfigDict

from configs.validate import raise_problems
from data_pipeline.packing import Documents, PackedRows, permutation
from data_pipeline.token_store import TokenStore


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


def training_documents(store: TokenStore, max_tokens: int) -> Documents:
    """Returns the training split, or `max_tokens` of it (0: all)."""
    split = store.split("train")
    return Subset(split, max_tokens) if 0 < max_tokens < split.n_tokens else split


def training_rows(config: ConfigDict, store: TokenStore) -> PackedRows:
    """Returns the rows that a run is trained on, in the order of its seed."""
    return PackedRows(
        training_documents(store, config.data.max_train_tokens),
        block_size=config.model.block_size,
        seed=config.seed,
        bos_id=store.tokenizer.bos_id,
        segments=config.data.document_mask,
    )


def evaluation_rows(config: ConfigDict, documents: Documents, *, bos_id: int) -> PackedRows:
    """Returns the rows to evaluate on: in the same order for every run, whatever its seed."""
    return PackedRows(
        documents,
        block_size=config.model.block_size,
        seed=0,
        bos_id=bos_id,
        segments=config.data.document_mask,
    )


def validate_store(config: ConfigDict, store: TokenStore) -> None:
    """Raises UserError with every split that is shorter than a row of the model."""
    block_size, limit = config.model.block_size, config.data.max_train_tokens
    splits = {"train": training_documents(store, limit), "val": store.split("val")}
    raise_problems(
        [
            f"model.block_size = {block_size:,} exceeds the {documents.n_tokens:,} tokens of the "
            f"{name} split (data.val_fraction = {config.data.val_fraction}, "
            f"data.max_train_tokens = {limit:,})"
            for name, documents in splits.items()
            if documents.n_tokens < block_size
        ]
    )
