"""The model with a key-value cache: a whole prompt at once, then one token at a time.

Each layer's keys and values of earlier tokens are kept, so that a new token costs one row of every
matrix product in place of the whole window. The cache is a plain tree of arrays, given and
returned: a list over layers of (keys, values), each (M, S, H) with M = B K, the heads of all rows,
and S = block_size. (With B an axis of its own, XLA copies a single row's cache for every token.)
Keys are kept as they are compared, rotary positions applied. Rows may have different lengths: what
lies behind a row's own position is never seen.

The results equal those of `model.hidden_states` up to the rounding of float32: a product with one
row and one with many are summed in another order. Nothing is approximated.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from gptjax.model import gpt
from gptjax.model.attention import attention
from gptjax.model.config import GPTConfig
from gptjax.model.gpt import Params

Cache = list[tuple[Array, Array]]  # for each layer k_MSH, v_MSH, in the compute dtype


def split_layers(model_config: GPTConfig, params: Params) -> list[Any]:
    """Returns each block's parameters as arrays of their own, matrices in the compute dtype.

    A scan over stacked layers copies each layer out of the stack for every token, which takes as
    long as using it.
    """

    def one(layer: int) -> Any:
        block = jax.tree.map(lambda x_L: x_L[layer], params["blocks"])
        matrices = {name: block[name] for name in ("attn", "mlp")}
        return block | jax.tree.map(lambda x: x.astype(model_config.compute_dtype), matrices)

    return [one(layer) for layer in range(model_config.n_layer)]


def prefill(model_config: GPTConfig, params: Params, tokens_BP: Array) -> tuple[Array, Cache]:
    """Runs the model on prompts, the same way as in training.

    Args:
        model_config: the model's shape.
        params: its parameters.
        tokens_BP: int32 prompts, P <= block_size, padded at their ends with anything.

    Returns:
        (x_BPD after the final norm, the cache). At and behind a row's padding both are
        rubbish, which decoding overwrites before it is seen.
    """
    module = gpt.merge(model_config, params)
    rope = module.rope(tokens_BP.shape[1], None)
    graphdef, params_L = nnx.split(module.blocks)

    def run_block(x_BPD: Array, layer: Any) -> tuple[Array, list[Array]]:
        kept: list[Array] = []

        def attend(q_BPNH: Array, k_BPKH: Array, v_BPKH: Array) -> Array:
            kept.extend((k_BPKH, v_BPKH))
            return attention(q_BPNH, k_BPKH, v_BPKH, implementation=model_config.attention)

        return nnx.merge(graphdef, layer)(x_BPD, rope, None, None, attend), kept

    x_BPD, kept_L = jax.lax.scan(
        run_block, module.embed(tokens_BP, None), params_L, unroll=model_config.scan_unroll
    )
    free = model_config.block_size - tokens_BP.shape[1]
    heads = (
        model_config.n_layer,
        len(tokens_BP) * model_config.kv_heads,
        -1,
        model_config.head_dim,
    )
    k_LMSH, v_LMSH = (
        jnp.pad(y_LBPKH.swapaxes(2, 3).reshape(heads), ((0, 0), (0, 0), (0, free), (0, 0)))
        for y_LBPKH in kept_L
    )
    return module.ln_f(x_BPD), [(k_LMSH[i], v_LMSH[i]) for i in range(model_config.n_layer)]


def decode(
    model_config: GPTConfig,
    params: Params,
    layers: list[Any],
    cache: Cache,
    tokens_B: Array,
    positions_B: Array,
) -> tuple[Array, Cache]:
    """Runs the model on one more token of each row.

    Args:
        model_config: the model's shape.
        params: its parameters; those of the blocks are not used.
        layers: the blocks' parameters, from `split_layers`.
        cache: holds the tokens before; donate it, and it is changed in place.
        tokens_B: int32.
        positions_B: int32 places of these tokens in their rows, < block_size.

    Returns:
        (float32 logits_BV of the tokens after these, the cache with these).
    """
    module = gpt.merge(model_config, params)
    graphdef, _ = nnx.split(module.blocks)
    x_B1D = module.embed(tokens_B[:, None], positions_B[:, None])
    rope = module.rope(1, positions_B[:, None])
    new_cache = []
    for layer, (k_MSH, v_MSH) in zip(layers, cache, strict=True):
        kept: list[Array] = []

        def attend(
            q_B1NH: Array,
            k_B1KH: Array,
            v_B1KH: Array,
            cached: tuple[Array, Array] = (k_MSH, v_MSH),
            kept: list[Array] = kept,
        ) -> Array:
            new = (k_B1KH, v_B1KH)
            kept.extend(_write(c, y, positions_B) for c, y in zip(cached, new, strict=True))
            return _attend_cached(q_B1NH, kept[0], kept[1], positions_B)

        x_B1D = nnx.merge(graphdef, layer)(x_B1D, rope, None, None, attend)
        new_cache.append((kept[0], kept[1]))
    return gpt.logits(model_config, params, module.ln_f(x_B1D)[:, 0]), new_cache


def _write(cache_MSH: Array, new_B1KH: Array, positions_B: Array) -> Array:
    """Puts each row's new key or value at the row's position."""
    kv_heads = new_B1KH.shape[2]
    heads_M = jnp.arange(len(cache_MSH))
    new_MH = new_B1KH.reshape(len(cache_MSH), -1)
    return cache_MSH.at[heads_M, jnp.repeat(positions_B, kv_heads)].set(new_MH)


def _attend_cached(q_B1NH: Array, k_MSH: Array, v_MSH: Array, positions_B: Array) -> Array:
    """`attention` for one query a row, which sees the keys up to its position.

    The G = N / K heads of queries that share keys are rows of one matrix.
    """
    width = q_B1NH.shape[3]
    rows, keys, _ = k_MSH.shape
    q_MGH = q_B1NH.reshape(rows, -1, width)
    scores_MGS = width**-0.5 * jnp.einsum(
        "mgh,msh->mgs", q_MGH, k_MSH, preferred_element_type=jnp.float32
    )
    last_M = jnp.repeat(positions_B, rows // len(positions_B))
    seen_MS = jnp.arange(keys)[None, :] <= last_M[:, None]
    weights_MGS = jax.nn.softmax(jnp.where(seen_MS[:, None], scores_MGS, -jnp.inf))
    return jnp.einsum("mgs,msh->mgh", weights_MGS.astype(q_MGH.dtype), v_MSH).reshape(q_B1NH.shape)
