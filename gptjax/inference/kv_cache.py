"""The model with a key-value cache: a whole prompt at once, then one token at a time.

Each layer's keys (after rotary positions) and values of earlier tokens are kept, so a new token
costs one row of every matrix product instead of the whole window. The cache is a plain tree of
arrays, an argument and a result: a list over layers of (k_RSH, v_RSH), with S = block_size. (With B
and K as two axes, XLA copies a single row's cache for every token.) Rows may have different
lengths: what is stored beyond a row's own position is masked.

The results equal those of `hidden_states` up to float32 rounding: products with one row and with
many sum in different orders. Nothing is approximated.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from gptjax.model import GPTConfig, Params, gpt
from gptjax.model.attention import attention

LayerCache = tuple[Array, Array]  # k_RSH, v_RSH, in the compute dtype
Cache = list[LayerCache]


def split_layers(model_config: GPTConfig, params: Params) -> list[Any]:
    """Returns each block's parameters as separate arrays, matrices in the compute dtype.

    A scan over stacked layers copies each layer out of the stack for every token, which takes as
    long as using it.
    """

    def one(layer: int) -> Any:
        block = jax.tree.map(lambda x_L: x_L[layer], params["blocks"])
        matrices = {name: block[name] for name in ("attn", "mlp")}
        return block | jax.tree.map(lambda x: x.astype(model_config.compute_dtype), matrices)

    return [one(layer) for layer in range(model_config.n_layer)]


def prefill(model_config: GPTConfig, params: Params, tokens_BT: Array) -> tuple[Array, Cache]:
    """Runs the model on prompts (int32, T <= block_size, padded at their ends), as in training.

    Returns (x_BTD after the final norm, the cache). From a row's padding on, both are meaningless;
    decoding overwrites the cache there before it attends to it.
    """

    def attend(q_BTNH: Array, k_BTKH: Array, v_BTKH: Array) -> tuple[Array, LayerCache]:
        y_BTNH = attention(q_BTNH, k_BTKH, v_BTKH, implementation=model_config.attention)
        return y_BTNH, (k_BTKH, v_BTKH)

    x_BTD, kv_L = gpt.merge(model_config, params)(tokens_BT, None, attend)
    n_rows, length = tokens_BT.shape
    n_layer, free = model_config.n_layer, model_config.block_size - length
    shape = (n_layer, n_rows * model_config.n_kv_head, -1, model_config.head_dim)
    k_LRSH, v_LRSH = (
        jnp.pad(y_LBTKH.swapaxes(2, 3).reshape(shape), ((0, 0), (0, 0), (0, free), (0, 0)))
        for y_LBTKH in kv_L
    )
    return x_BTD, [(k_LRSH[i], v_LRSH[i]) for i in range(n_layer)]


def decode(
    model_config: GPTConfig,
    params: Params,
    layers: list[Any],
    cache: Cache,
    tokens_B: Array,
    positions_B: Array,
) -> tuple[Array, Cache]:
    """Runs the model on one more token of each row, int32, at its position there (< block_size).

    Of the blocks' parameters, those of `layers` are used. Donate the cache of the earlier tokens,
    and it is changed in place. Returns (float32 logits_BV of the next tokens, the cache with
    these).
    """
    module = gpt.merge(model_config, params)
    graphdef, _ = nnx.split(module.blocks)
    x_B1D = module.embed(tokens_B[:, None], positions_B[:, None])
    rope = module.rope(1, positions_B[:, None])
    new_cache = []
    for layer, layer_cache in zip(layers, cache, strict=True):
        attend = functools.partial(_attend_cached, layer_cache, positions_B)
        x_B1D, layer_cache = nnx.merge(graphdef, layer)(x_B1D, rope, attend)
        new_cache.append(layer_cache)
    return gpt.logits(model_config, params, module.ln_f(x_B1D)[:, 0]), new_cache


def _attend_cached(
    cache: LayerCache, positions_B: Array, q_B1NH: Array, k_B1KH: Array, v_B1KH: Array
) -> tuple[Array, LayerCache]:
    """`attention` for one query a row, over the keys up to its position; returns the new cache.

    The G heads of queries that share a key head are rows of one matrix.
    """
    n_kv_head, width = k_B1KH.shape[2:]
    n_heads, length, _ = cache[0].shape
    positions_R = jnp.repeat(positions_B, n_kv_head)
    k_RSH, v_RSH = (
        y_RSH.at[jnp.arange(n_heads), positions_R].set(new_B1KH.reshape(n_heads, -1))
        for y_RSH, new_B1KH in zip(cache, (k_B1KH, v_B1KH), strict=True)
    )
    q_RGH = q_B1NH.reshape(n_heads, -1, width)
    scores_RGS = width**-0.5 * jnp.einsum(
        "rgh,rsh->rgs", q_RGH, k_RSH, preferred_element_type=jnp.float32
    )
    mask_RS = jnp.arange(length)[None, :] <= positions_R[:, None]
    weights_RGS = jax.nn.softmax(jnp.where(mask_RS[:, None], scores_RGS, -jnp.inf))
    y_RGH = jnp.einsum("rgs,rsh->rgh", weights_RGS.astype(q_RGH.dtype), v_RSH)
    return y_RGH.reshape(q_B1NH.shape), (k_RSH, v_RSH)
