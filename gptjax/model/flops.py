"""Parameters and model FLOPs, counted from the shape."""

import jax

from gptjax.model.config import GPTConfig
from gptjax.model.gpt import init


def count_params(model_config: GPTConfig) -> tuple[int, int]:
    """Returns (all parameters, those without embeddings and head), allocating none."""
    shapes = jax.eval_shape(lambda: init(model_config, jax.random.key(0)))
    total = sum(x.size for x in jax.tree.leaves(shapes))
    outside = sum(shapes[name].size for name in ("wte", "wpe", "lm_head") if name in shapes)
    return total, total - outside


def flops_per_token(model_config: GPTConfig) -> int:
    """Returns the model FLOPs of a training token: 6 a matmul parameter (head too), and attention.

    As in PaLM (Chowdhery et al. 2022, appendix B): 12 L D T for attention, masked half included.
    """
    attention_params = (
        2
        * model_config.n_embd
        * (model_config.n_head + model_config.kv_heads)
        * model_config.head_dim
    )
    mlp_params = (
        (3 if model_config.mlp == "swiglu" else 2) * model_config.n_embd * model_config.mlp_width
    )
    matmul_params = model_config.n_layer * (attention_params + mlp_params)
    matmul_params += model_config.vocab_size * model_config.n_embd
    return (
        6 * matmul_params
        + 12 * model_config.n_layer * model_config.n_embd * model_config.block_size
    )
