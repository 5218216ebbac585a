"""Is there enough data for the configuration?"""

from ml_collections import ConfigDict

from configs.validate import raise_problems
from data_pipeline.subset import training_documents
from data_pipeline.token_store import TokenStore


def validate_store(config: ConfigDict, store: TokenStore) -> None:
    """Raises UserError where the data is too small for `config`: all such problems at once."""
    problems = []
    limit = config.data.max_train_tokens
    for name, documents in (
        ("train", training_documents(store, limit)),
        ("val", store.split("val")),
    ):
        if documents.n_tokens < config.model.block_size:
            problems.append(
                f"model.block_size = {config.model.block_size:,} exceeds the "
                f"{documents.n_tokens:,} tokens of the {name} split (data.val_fraction = "
                f"{config.data.val_fraction}, data.max_train_tokens = {limit:,})"
            )
    raise_problems(problems)
