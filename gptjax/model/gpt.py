"""The GPT in reading order: parameters, hidden states and logits; then the modules, whole to parts.

By default it is GPT-2: pre-LayerNorm, GELU, learned positions, a head tied to the token embedding.
`config.model` can replace these by RMSNorm, SwiGLU or ReLU^2, rotary positions and an untied head,
and add normalised queries and keys, shared heads of keys and values, and blocks that begin as the
identity. Arrays are named by their shapes: the key is in gptjax/model/__init__.py.

Parameters are a nested dict of float32 arrays, which any tool can read and `jax.jit` dispatches
fastest; NNX only defines the modules. The L blocks are stacked on a leading axis and run by one
`lax.scan`, so compile time does not grow with depth.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from gptjax.model.attention import attention, is_attention
from gptjax.model.config import INIT_STD, GPTConfig
from gptjax.model.layers import Linear, RMSNorm, Rope, apply_rope, dropout, rope_table

Params = dict[str, Any]

# Attention in a layer: (q_BTNH, k_BTKH, v_BTKH) -> (y_BTNH, extra output of the layer: None in
# training, keys and values for the cache in inference/kv_cache.py).
Attend = Callable[[Array, Array, Array], tuple[Array, Any]]

# Takes the parameters of one block, split over devices, and returns them whole.
GatherBlock = Callable[[Params], Params]

_REMAT_POLICIES: dict[str, Callable[..., bool]] = {
    # Only where blocks are gathered: all is kept but the parameters of other devices.
    "none": lambda primitive, *_, **__: primitive.name not in ("all_gather", "split"),
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable, is_attention
    ),
    "full": jax.checkpoint_policies.nothing_saveable,
}


def init(model_config: GPTConfig, key: Array) -> Params:
    """Returns new parameters, drawn as GPT-2's."""
    return nnx.to_pure_dict(nnx.state(GPT(model_config, key=key)))


def hidden_states(
    model_config: GPTConfig,
    params: Params,
    tokens_BT: Array,
    *,
    positions_BT: Array | None = None,
    segment_ids_BT: Array | None = None,
    dropout_keys_B: Array | None = None,
    gather_block: GatherBlock | None = None,
) -> Array:
    """Runs the model up to the head: returns x_BTD after the final norm, in the compute dtype.

    Tokens are int32 ids; `positions_BT`, 0..T-1 by default, are those in their documents. With
    `segment_ids_BT`, document numbers, a token attends only inside its own document. Without
    `dropout_keys_B` (PRNG keys) there is no dropout. With `gather_block`, each block's parameters
    pass through it, in the backward pass again.
    """

    def attend(q_BTNH: Array, k_BTKH: Array, v_BTKH: Array) -> tuple[Array, None]:
        name = model_config.attention
        return attention(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, implementation=name), None

    x_BTD, _ = merge(model_config, params)(
        tokens_BT, positions_BT, attend, dropout_keys_B, gather_block
    )
    return x_BTD


def logits(model_config: GPTConfig, params: Params, x_BTD: Array) -> Array:
    """Returns float32 logits (..., V) of hidden states (..., D)."""
    w_VD = unembedding(params).astype(model_config.compute_dtype)
    return jnp.einsum("...d,vd->...v", x_BTD, w_VD, preferred_element_type=jnp.float32)


def unembedding(params: Params) -> Array:
    """Returns the head's matrix (V, D), float32: the token embedding, unless it is untied."""
    return params["lm_head"] if "lm_head" in params else params["wte"]


def merge(model_config: GPTConfig, params: Params) -> "GPT":
    """Returns the module with these parameters, to call under `jax.jit`."""
    return nnx.merge(_graphdef(model_config), params)


@functools.cache
def _graphdef(model_config: GPTConfig) -> Any:
    return nnx.split(nnx.eval_shape(lambda: GPT(model_config, key=jax.random.key(0))))[0]


class GPT(nnx.Module):
    """Token (and position) embeddings, L blocks, a norm, and the matrix of an untied head."""

    def __init__(self, model_config: GPTConfig, *, key: Array):
        wte_key, wpe_key, blocks_key, ln_f_key, head_key = jax.random.split(key, 5)
        width, vocab_size = model_config.n_embd, model_config.vocab_size
        learned, untied = model_config.position == "learned", not model_config.tie_embeddings
        self.model_config = model_config
        self.wte = embedding(wte_key, vocab_size, width)
        self.wpe = embedding(wpe_key, model_config.block_size, width) if learned else None
        self.blocks = nnx.vmap(lambda k: Block(model_config, rngs=nnx.Rngs(k)))(
            jax.random.split(blocks_key, model_config.n_layer)
        )
        self.ln_f = norm(model_config, rngs=nnx.Rngs(ln_f_key))
        self.lm_head = embedding(head_key, vocab_size, width) if untied else None

    def __call__(
        self,
        tokens_BT: Array,
        positions_BT: Array | None,
        attend: Attend,
        dropout_keys_B: Array | None = None,
        gather_block: GatherBlock | None = None,
    ) -> tuple[Array, Any]:
        model_config = self.model_config
        x_BTD = self.embed(tokens_BT, positions_BT)
        keys_LB = None
        if dropout_keys_B is not None:
            embedding_keys_B, blocks_keys_B = split_keys(dropout_keys_B, 2)
            x_BTD = dropout(x_BTD, model_config.dropout, embedding_keys_B)
            keys_LB = split_keys(blocks_keys_B, model_config.n_layer)
        rope = self.rope(tokens_BT.shape[1], positions_BT)
        graphdef, params_L = nnx.split(self.blocks)

        def run_block(x_BTD: Array, layer: tuple[Any, Array | None]) -> tuple[Array, Any]:
            params, keys_B = layer
            if gather_block is not None:
                params = gather_block(nnx.to_pure_dict(params))
            return nnx.merge(graphdef, params)(x_BTD, rope, attend, keys_B)

        if model_config.remat != "none" or gather_block is not None:
            # A loop keeps XLA from undoing the recomputation; without one, CSE must be barred.
            run_block = jax.checkpoint(
                run_block,
                policy=_REMAT_POLICIES[model_config.remat],
                prevent_cse=model_config.scan_unroll >= model_config.n_layer,
            )
        x_BTD, extra_L = jax.lax.scan(
            run_block, x_BTD, (params_L, keys_LB), unroll=model_config.scan_unroll
        )
        return self.ln_f(x_BTD), extra_L

    def embed(self, tokens_BT: Array, positions_BT: Array | None) -> Array:
        x_BTD = self.wte[...][tokens_BT]
        if self.wpe is not None:
            wpe = self.wpe[...]
            x_BTD = x_BTD + (
                wpe[None, : tokens_BT.shape[1]] if positions_BT is None else wpe[positions_BT]
            )
        return x_BTD.astype(self.model_config.compute_dtype)

    def rope(self, length: int, positions_BT: Array | None) -> Rope | None:
        """Returns the rotations of queries and keys in all blocks; None for learned positions."""
        model_config = self.model_config
        if model_config.position != "rope":
            return None
        if positions_BT is None:
            positions_BT = jnp.arange(length)[None]
        theta, scaling = model_config.rope_theta, model_config.rope_scaling
        return rope_table(positions_BT, model_config.head_dim, theta, scaling)


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, model_config: GPTConfig, *, rngs: nnx.Rngs):
        self.dropout = model_config.dropout
        self.ln_1 = norm(model_config, rngs=rngs)
        self.attn = SelfAttention(model_config, rngs=rngs)
        self.ln_2 = norm(model_config, rngs=rngs)
        self.mlp = MLP(model_config, rngs=rngs)

    def __call__(
        self, x_BTD: Array, rope: Rope | None, attend: Attend, keys_B: Array | None = None
    ) -> tuple[Array, Any]:
        attn_keys_B, mlp_keys_B = (None, None) if keys_B is None else split_keys(keys_B, 2)
        y_BTD, extra = self.attn(self.ln_1(x_BTD), rope, attend)
        x_BTD = x_BTD + dropout(y_BTD, self.dropout, attn_keys_B)
        y_BTD = self.mlp(self.ln_2(x_BTD))
        return x_BTD + dropout(y_BTD, self.dropout, mlp_keys_B), extra


def split_keys(keys_B: Array, n: int) -> Array:
    """Returns n new keys for each row: [n, B]."""
    return jax.vmap(lambda key: jax.random.split(key, n), out_axes=1)(keys_B)


class SelfAttention(nnx.Module):
    """Causal self-attention; dropout is on its output, for flash kernels hide the weights."""

    def __init__(self, model_config: GPTConfig, *, rngs: nnx.Rngs):
        width, self.head_dim = model_config.n_embd, model_config.head_dim
        self.kv_width = model_config.n_kv_head * self.head_dim
        self.c_attn = linear(model_config, width, width + 2 * self.kv_width, rngs=rngs)
        eps = model_config.norm_eps
        self.q_norm = RMSNorm(self.head_dim, eps) if model_config.qk_norm else None
        self.k_norm = RMSNorm(self.head_dim, eps) if model_config.qk_norm else None
        self.c_proj = linear(model_config, width, width, rngs=rngs, std=model_config.residual_std)

    def __call__(self, x_BTD: Array, rope: Rope | None, attend: Attend) -> tuple[Array, Any]:
        *rows, width = x_BTD.shape
        q_BTNH, k_BTKH, v_BTKH = (
            y.reshape(*rows, -1, self.head_dim)
            for y in self.c_attn.split(x_BTD, (width, width + self.kv_width))
        )
        if self.q_norm is not None and self.k_norm is not None:
            q_BTNH, k_BTKH = self.q_norm(q_BTNH), self.k_norm(k_BTKH)
        if rope is not None:
            q_BTNH, k_BTKH = apply_rope(q_BTNH, rope), apply_rope(k_BTKH, rope)
        y_BTNH, extra = attend(q_BTNH, k_BTKH, v_BTKH)
        return self.c_proj(y_BTNH.reshape(x_BTD.shape)), extra


class MLP(nnx.Module):
    """Linear layers D -> F -> D around a GELU in its tanh form, ReLU^2, or gated by a SiLU."""

    def __init__(self, model_config: GPTConfig, *, rngs: nnx.Rngs):
        width, hidden = model_config.n_embd, model_config.mlp_dim
        gated = model_config.mlp == "swiglu"
        self.kind = model_config.mlp
        self.c_fc = linear(model_config, width, hidden, rngs=rngs)
        self.c_proj = linear(model_config, hidden, width, rngs=rngs, std=model_config.residual_std)
        self.c_gate = linear(model_config, width, hidden, rngs=rngs) if gated else None

    def __call__(self, x_BTD: Array) -> Array:
        y_BTF = self.c_fc(x_BTD)
        if self.c_gate is not None:
            y_BTF = jax.nn.silu(self.c_gate(x_BTD)) * y_BTF
        elif self.kind == "relu2":
            y_BTF = jnp.square(jax.nn.relu(y_BTF))
        else:
            y_BTF = jax.nn.gelu(y_BTF, approximate=True)
        return self.c_proj(y_BTF)


def linear(
    model_config: GPTConfig, d_in: int, d_out: int, *, rngs: nnx.Rngs, std: float = INIT_STD
) -> Linear:
    """Returns a linear layer whose weights have the standard deviation `std`."""
    return Linear(
        d_in, d_out, std=std, bias=model_config.bias, dtype=model_config.compute_dtype, rngs=rngs
    )


def norm(model_config: GPTConfig, *, rngs: nnx.Rngs) -> nnx.LayerNorm | RMSNorm:
    """Returns a norm over D with float32 statistics, a LayerNorm's two-pass."""
    if model_config.norm == "rmsnorm":
        return RMSNorm(model_config.n_embd, model_config.norm_eps)
    return nnx.LayerNorm(
        model_config.n_embd,
        epsilon=model_config.norm_eps,
        use_bias=model_config.bias,
        dtype=jnp.dtype(model_config.compute_dtype),
        use_fast_variance=False,
        rngs=rngs,
    )


def embedding(key: Array, n_rows: int, width: int) -> nnx.Param:
    """Returns a table of vectors, drawn as GPT-2's."""
    return nnx.Param(INIT_STD * jax.random.normal(key, (n_rows, width)))
