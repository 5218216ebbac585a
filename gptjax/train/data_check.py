"""Checks that there is enough data for the configuration."""

from ml_collections import ConfigDict

from configs.validate import raise_problems
from data_pipeline.subset import training_documents
from data_pipeline.token_store import TokenStore


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
