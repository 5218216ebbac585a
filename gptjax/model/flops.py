"""Parameters and model FLOPs, counted from the shape."""

import dataclasses
import functools

import jax

from gptjax.model.config import GPTConfig
from gptjax.model.gpt import init


@functools.cache  # tracing takes 0.1 s, and a search for sizes asks for hundreds
def count_params(model_config: GPTConfig) -> tuple[int, int]:
    """Returns (all parameters, those without embeddings and head), allocating none."""
    shapes = jax.eval_shape(lambda: init(model_config, jax.random.key(0)))
    total = sum(x.size for x in jax.tree.leaves(shapes))
    outside = sum(shapes[name].size for name in ("wte", "wpe", "lm_head") if name in shapes)
    return total, total - outside


def flops_per_token(model_config: GPTConfig, teacher: GPTConfig | None = None) -> int:
    """Returns the model FLOPs of a training token: 6 a matmul parameter (head too), and attention.

    As in PaLM (Chowdhery et al. 2022, appendix B): 12 L D T for attention, masked half included.
    Of a `teacher`, which sees the same rows, the forward pass, a third of that.
    """
    if teacher is not None:
        teacher = dataclasses.replace(teacher, block_size=model_config.block_size)
        return flops_per_token(model_config) + flops_per_token(teacher) // 3
    shape, width = model_config, model_config.n_embd
    attention_params = 2 * width * (shape.n_head + shape.n_kv_head) * shape.head_dim
    mlp_params = (3 if shape.mlp == "swiglu" else 2) * width * shape.mlp_dim
    matmul_params = shape.n_layer * (attention_params + mlp_params) + shape.vocab_size * width
    return 6 * matmul_params + 12 * shape.n_layer * width * shape.block_size
