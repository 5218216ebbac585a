"""The dtype of matmuls, by configuration and device."""

import jax
from ml_collections import ConfigDict


def compute_dtype(config: ConfigDict) -> str:
    """Returns the dtype of matmuls; `auto` is bfloat16 on a GPU (tensor cores), else float32."""
    if config.model.compute_dtype != "auto":
        return config.model.compute_dtype
    return "bfloat16" if jax.default_backend() == "gpu" else "float32"
