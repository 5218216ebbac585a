"""A model of the least size, for tests to change."""

import dataclasses
from typing import Any

from configs import base
from gptjax.model import GPTConfig


def tiny_gpt(**changes: Any) -> GPTConfig:
    """Returns GPT-2's shape in small, biases and all, in float32; fields of GPTConfig change it."""
    model_config = GPTConfig.from_config(base.get_config(), vocab_size=50)
    tiny = {"block_size": 16, "n_layer": 2, "n_head": 2, "n_embd": 16, "bias": True}
    machine = {"compute_dtype": "float32", "attention": "xla"}
    return dataclasses.replace(model_config, **{**tiny, **machine, **changes})
