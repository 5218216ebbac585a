"""GPT in Flax NNX: GPT-2's parts, or by configuration those of newer models; parameters are a dict.

GPT-2: pre-LayerNorm, GELU, learned positions, a head tied to the token embedding. In their place:
RMSNorm, SwiGLU or ReLU^2, rotary positions, a head of its own. Besides: normalised queries and
keys, heads that share keys and values, blocks that begin as the identity.

Dimension key: B batch, T tokens of a row, D model width, N heads, K heads of keys and values, H
head width, F MLP hidden width, V vocabulary, L layers. Parameters of the L blocks are stacked on a
leading axis and the blocks are run by one `lax.scan`: compile time does not grow with depth.

NNX only defines the modules. Everything else sees `init`, `hidden_states` and a dict of arrays,
which any tool can read and `jax.jit` dispatches fastest.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from gptjax.model.attention import attention
from gptjax.model.config import INIT_STD, GPTConfig
from gptjax.model.layers import Linear, RMSNorm, Rope, apply_rope, dropout, rope_table

Params = dict[str, Any]  # nested dict of float32 arrays
LAYER_NORM_EPS = 1e-5

# Queries (B, T, N, H), keys and values (B, T, K, H) -> the values mixed; see inference/kv_cache.py.
Attend = Callable[[Array, Array, Array], Array]

_REMAT_POLICIES: dict[str, Callable[..., bool]] = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def linear(
    model_config: GPTConfig, d_in: int, d_out: int, *, rngs: nnx.Rngs, std: float = INIT_STD
) -> Linear:
    """Returns a layer drawn with a standard deviation of `std`."""
    return Linear(
        d_in, d_out, std=std, bias=model_config.bias, dtype=model_config.compute_dtype, rngs=rngs
    )


def norm(model_config: GPTConfig, *, rngs: nnx.Rngs) -> nnx.LayerNorm | RMSNorm:
    """Returns a norm over D with float32 statistics, a LayerNorm's two-pass."""
    if model_config.norm == "rmsnorm":
        return RMSNorm(model_config.n_embd)
    return nnx.LayerNorm(
        model_config.n_embd,
        epsilon=LAYER_NORM_EPS,
        use_bias=model_config.bias,
        dtype=jnp.dtype(model_config.compute_dtype),
        use_fast_variance=False,
        rngs=rngs,
    )


class SelfAttention(nnx.Module):
    """Causal self-attention; dropout on its output, for flash kernels hide the weights."""

    def __init__(self, model_config: GPTConfig, *, rngs: nnx.Rngs):
        self.model_config = model_config
        d_qkv = (model_config.n_head + 2 * model_config.kv_heads) * model_config.head_dim
        self.c_attn = linear(model_config, model_config.n_embd, d_qkv, rngs=rngs)
        self.q_norm = RMSNorm(model_config.head_dim) if model_config.qk_norm else None
        self.k_norm = RMSNorm(model_config.head_dim) if model_config.qk_norm else None
        self.c_proj = linear(
            model_config,
            model_config.n_embd,
            model_config.n_embd,
            rngs=rngs,
            std=model_config.residual_std,
        )

    def __call__(
        self,
        x_BTD: Array,
        rope: Rope | None,
        segment_ids_BT: Array | None,
        attend: Attend | None = None,
    ) -> Array:
        model_config = self.model_config
        ends = (
            model_config.n_embd,
            model_config.n_embd + model_config.kv_heads * model_config.head_dim,
        )
        q_BTNH, k_BTKH, v_BTKH = (
            y.reshape(*x_BTD.shape[:2], -1, model_config.head_dim)
            for y in jnp.split(self.c_attn(x_BTD), ends, axis=-1)
        )
        if self.q_norm is not None and self.k_norm is not None:
            q_BTNH, k_BTKH = self.q_norm(q_BTNH), self.k_norm(k_BTKH)
        if rope is not None:
            q_BTNH, k_BTKH = apply_rope(q_BTNH, rope), apply_rope(k_BTKH, rope)
        if attend is None:
            y_BTNH = attention(
                q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, implementation=model_config.attention
            )
        else:
            y_BTNH = attend(q_BTNH, k_BTKH, v_BTKH)
        return self.c_proj(y_BTNH.reshape(x_BTD.shape))


class MLP(nnx.Module):
    """Linear layers D -> F -> D around a GELU in its tanh form, ReLU^2, or gated by a SiLU."""

    def __init__(self, model_config: GPTConfig, *, rngs: nnx.Rngs):
        width, hidden = model_config.n_embd, model_config.mlp_width
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


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, model_config: GPTConfig, *, rngs: nnx.Rngs):
        self.dropout = model_config.dropout
        self.ln_1 = norm(model_config, rngs=rngs)
        self.attn = SelfAttention(model_config, rngs=rngs)
        self.ln_2 = norm(model_config, rngs=rngs)
        self.mlp = MLP(model_config, rngs=rngs)

    def __call__(
        self,
        x_BTD: Array,
        rope: Rope | None,
        segment_ids_BT: Array | None,
        key: Array | None,
        attend: Attend | None = None,
    ) -> Array:
        attn_key, mlp_key = (None, None) if key is None else jax.random.split(key)
        y_BTD = self.attn(self.ln_1(x_BTD), rope, segment_ids_BT, attend)
        x_BTD = x_BTD + dropout(y_BTD, self.dropout, attn_key)
        y_BTD = self.mlp(self.ln_2(x_BTD))
        return x_BTD + dropout(y_BTD, self.dropout, mlp_key)


class GPT(nnx.Module):
    """Embeddings, L blocks, a norm. The head is the token embedding, or a matrix of its own."""

    def __init__(self, model_config: GPTConfig, *, key: Array):
        wte_key, wpe_key, blocks_key, ln_f_key, head_key = jax.random.split(key, 5)
        self.model_config = model_config
        self.wte = _table(wte_key, model_config.vocab_size, model_config.n_embd)
        learned = model_config.position == "learned"
        self.wpe = (
            _table(wpe_key, model_config.block_size, model_config.n_embd) if learned else None
        )
        self.blocks = nnx.vmap(lambda k: Block(model_config, rngs=nnx.Rngs(k)))(
            jax.random.split(blocks_key, model_config.n_layer)
        )
        self.ln_f = norm(model_config, rngs=nnx.Rngs(ln_f_key))
        untied = not model_config.tie_embeddings
        self.lm_head = (
            _table(head_key, model_config.vocab_size, model_config.n_embd) if untied else None
        )

    def embed(self, tokens_BT: Array, positions_BT: Array | None) -> Array:
        x_BTD = self.wte[...][tokens_BT]
        if self.wpe is not None:
            wpe = self.wpe[...]
            x_BTD = x_BTD + (
                wpe[None, : tokens_BT.shape[1]] if positions_BT is None else wpe[positions_BT]
            )
        return x_BTD.astype(self.model_config.compute_dtype)

    def rope(self, length: int, positions_BT: Array | None) -> Rope | None:
        """Returns what all blocks turn queries and keys by; None for learned positions."""
        model_config = self.model_config
        if model_config.position != "rope":
            return None
        if positions_BT is None:
            positions_BT = jnp.arange(length)[None]
        return rope_table(positions_BT, model_config.head_dim, model_config.rope_theta)

    def __call__(
        self,
        tokens_BT: Array,
        positions_BT: Array | None,
        segment_ids_BT: Array | None,
        dropout_key: Array | None,
    ) -> Array:
        model_config = self.model_config
        x_BTD = self.embed(tokens_BT, positions_BT)
        keys_L = None
        if dropout_key is not None:
            embedding_key, dropout_key = jax.random.split(dropout_key)
            x_BTD = dropout(x_BTD, model_config.dropout, embedding_key)
            keys_L = jax.random.split(dropout_key, model_config.n_layer)
        rope = self.rope(tokens_BT.shape[1], positions_BT)
        graphdef, params_L = nnx.split(self.blocks)

        def run_block(x_BTD: Array, layer: tuple[Any, Array | None]) -> tuple[Array, None]:
            params, key = layer
            return nnx.merge(graphdef, params)(x_BTD, rope, segment_ids_BT, key), None

        if model_config.remat != "none":
            # A loop keeps XLA from undoing the recomputation; without one, CSE must be barred.
            run_block = jax.checkpoint(
                run_block,
                policy=_REMAT_POLICIES[model_config.remat],
                prevent_cse=model_config.scan_unroll >= model_config.n_layer,
            )
        x_BTD, _ = jax.lax.scan(
            run_block, x_BTD, (params_L, keys_L), unroll=model_config.scan_unroll
        )
        return self.ln_f(x_BTD)


def _table(key: Array, n_rows: int, width: int) -> nnx.Param:
    return nnx.Param(INIT_STD * jax.random.normal(key, (n_rows, width)))


@functools.cache
def _graphdef(model_config: GPTConfig) -> Any:
    build = functools.partial(GPT, model_config)
    return nnx.split(nnx.eval_shape(lambda: build(key=jax.random.key(0))))[0]


def merge(model_config: GPTConfig, params: Params) -> GPT:
    """Returns the module with these parameters, as a stateless thing to call under `jax.jit`."""
    return nnx.merge(_graphdef(model_config), params)


def init(model_config: GPTConfig, key: Array) -> Params:
    """Returns new parameters, drawn as GPT-2's: a nested dict of float32 arrays."""
    return nnx.to_pure_dict(nnx.state(GPT(model_config, key=key)))


def hidden_states(
    model_config: GPTConfig,
    params: Params,
    tokens_BT: Array,
    *,
    positions_BT: Array | None = None,
    segment_ids_BT: Array | None = None,
    dropout_key: Array | None = None,
) -> Array:
    """Runs the model up to the head.

    Args:
        model_config: the model's shape.
        params: as returned by `init`.
        tokens_BT: int32 token ids.
        positions_BT: places of the tokens in their documents; 0..T-1 by default.
        segment_ids_BT: document numbers; given, a token attends only inside its own document.
        dropout_key: PRNG key; without it there is no dropout.

    Returns:
        x_BTD after the final norm, in the compute dtype. See `logits`.
    """
    model = merge(model_config, params)
    return model(tokens_BT, positions_BT, segment_ids_BT, dropout_key)


def unembedding(params: Params) -> Array:
    """Returns the output matrix (V, D), float32: the token embedding, unless it is untied."""
    return params["lm_head"] if "lm_head" in params else params["wte"]


def logits(model_config: GPTConfig, params: Params, x_BTD: Array) -> Array:
    """Returns float32 logits (..., V) of hidden states (..., D)."""
    w_VD = unembedding(params).astype(model_config.compute_dtype)
    return jnp.einsum("...d,vd->...v", x_BTD, w_VD, preferred_element_type=jnp.float32)
