"""GPT-2 in Flax NNX: pre-LayerNorm, GELU, learned positions, tied head; parameters are a dict.

Dimension key: B batch, T tokens of a row, D model width, N heads, H head width, F MLP hidden width,
V vocabulary, L layers. Parameters of the L blocks are stacked on a leading axis and the blocks are
run by one `lax.scan`, so that compile time does not grow with depth.

NNX only defines the modules. Everything else sees `init`, `hidden_states` and a dict of arrays,
which any tool can read and `jax.jit` dispatches fastest.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from ml_collections import ConfigDict

from gptjax import attention as attention_lib
from gptjax.attention import attention
from gptjax.config import compute_dtype

Params = dict[str, Any]  # nested dict of float32 arrays

_INIT_STD = 0.02  # GPT-2 (Radford et al. 2019)
LAYER_NORM_EPS = 1e-5

# Queries, keys and values (B, T, N, H) -> what the attention makes of them; see gptjax/decode.py.
Attend = Callable[[Array, Array, Array], Array]

_REMAT_POLICIES: dict[str, Callable[..., bool]] = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


@dataclasses.dataclass(frozen=True)
class GPTConfig:
    """Shape and arithmetic of a model; hashable, so that compiled functions can be cached by it."""

    vocab_size: int  # V
    block_size: int  # T, at most
    n_layer: int  # L
    n_head: int  # N
    n_embd: int  # D
    dropout: float
    bias: bool
    compute_dtype: str
    remat: str
    scan_unroll: int
    attention: str = "xla"  # see gptjax/attention.py; `from_config` sets it, and never to `auto`

    @classmethod
    def from_config(cls, config: ConfigDict, vocab_size: int) -> "GPTConfig":
        """Returns the shape in `config.model`, for a tokenizer of `vocab_size` pieces.

        `auto` becomes what this machine runs; what is named is kept, also where it cannot run here.
        """
        keys = {field.name for field in dataclasses.fields(cls)} & set(config.model)
        values = {key: config.model[key] for key in keys}
        values |= {"vocab_size": vocab_size, "compute_dtype": compute_dtype(config)}
        if values["attention"] == "auto":
            values["attention"], _ = attention_lib.choose(config)
        return cls(**values)

    @property
    def head_dim(self) -> int:
        """H, the width of one attention head."""
        return self.n_embd // self.n_head


class Linear(nnx.Module):
    """y = x W + b on the last axis; parameters in float32, arithmetic in `config.compute_dtype`."""

    def __init__(
        self, config: GPTConfig, d_in: int, d_out: int, *, rngs: nnx.Rngs, std: float = _INIT_STD
    ):
        self.dtype = config.compute_dtype
        self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), (d_in, d_out)))
        self.bias = nnx.Param(jnp.zeros(d_out)) if config.bias else None

    def __call__(self, x: Array) -> Array:
        # One contracted and one free axis: XLA's CPU weight gradient is slow over two free axes.
        y = x.reshape(-1, x.shape[-1]) @ self.kernel[...].astype(self.dtype)
        if self.bias is not None:
            y = y + self.bias[...].astype(self.dtype)[None, :]
        return y.reshape(*x.shape[:-1], -1)


def layer_norm(config: GPTConfig, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Returns a LayerNorm whose statistics are float32 and two-pass."""
    return nnx.LayerNorm(
        config.n_embd,
        epsilon=LAYER_NORM_EPS,
        use_bias=config.bias,
        dtype=jnp.dtype(config.compute_dtype),
        use_fast_variance=False,
        rngs=rngs,
    )


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Zeroes a share `rate` of `x` and scales the rest up; the identity without a key."""
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


class SelfAttention(nnx.Module):
    """Causal self-attention; dropout on its output, for flash kernels hide the weights."""

    def __init__(self, config: GPTConfig, *, rngs: nnx.Rngs):
        self.config = config
        residual_std = _INIT_STD / (2 * config.n_layer) ** 0.5
        self.c_attn = Linear(config, config.n_embd, 3 * config.n_embd, rngs=rngs)
        self.c_proj = Linear(config, config.n_embd, config.n_embd, rngs=rngs, std=residual_std)

    def __call__(
        self, x_BTD: Array, segment_ids_BT: Array | None, attend: Attend | None = None
    ) -> Array:
        heads = (*x_BTD.shape[:2], self.config.n_head, self.config.head_dim)
        q_BTNH, k_BTNH, v_BTNH = (
            y.reshape(heads) for y in jnp.split(self.c_attn(x_BTD), 3, axis=-1)
        )
        if attend is None:
            y_BTNH = attention(
                q_BTNH, k_BTNH, v_BTNH, segment_ids_BT, implementation=self.config.attention
            )
        else:
            y_BTNH = attend(q_BTNH, k_BTNH, v_BTNH)
        return self.c_proj(y_BTNH.reshape(x_BTD.shape))


class MLP(nnx.Module):
    """Two linear layers, D -> F = 4 D -> D, around a GELU in its tanh form."""

    def __init__(self, config: GPTConfig, *, rngs: nnx.Rngs):
        residual_std = _INIT_STD / (2 * config.n_layer) ** 0.5
        self.c_fc = Linear(config, config.n_embd, 4 * config.n_embd, rngs=rngs)
        self.c_proj = Linear(config, 4 * config.n_embd, config.n_embd, rngs=rngs, std=residual_std)

    def __call__(self, x_BTD: Array) -> Array:
        return self.c_proj(jax.nn.gelu(self.c_fc(x_BTD), approximate=True))


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: GPTConfig, *, rngs: nnx.Rngs):
        self.dropout = config.dropout
        self.ln_1 = layer_norm(config, rngs=rngs)
        self.attn = SelfAttention(config, rngs=rngs)
        self.ln_2 = layer_norm(config, rngs=rngs)
        self.mlp = MLP(config, rngs=rngs)

    def __call__(
        self,
        x_BTD: Array,
        segment_ids_BT: Array | None,
        key: Array | None,
        attend: Attend | None = None,
    ) -> Array:
        attn_key, mlp_key = (None, None) if key is None else jax.random.split(key)
        y_BTD = self.attn(self.ln_1(x_BTD), segment_ids_BT, attend)
        x_BTD = x_BTD + dropout(y_BTD, self.dropout, attn_key)
        y_BTD = self.mlp(self.ln_2(x_BTD))
        return x_BTD + dropout(y_BTD, self.dropout, mlp_key)


class GPT(nnx.Module):
    """Token and position embeddings, L blocks, a LayerNorm. The head is the token embedding."""

    def __init__(self, config: GPTConfig, *, key: Array):
        wte_key, wpe_key, blocks_key, ln_f_key = jax.random.split(key, 4)
        self.config = config
        self.wte = nnx.Param(
            _INIT_STD * jax.random.normal(wte_key, (config.vocab_size, config.n_embd))
        )
        self.wpe = nnx.Param(
            _INIT_STD * jax.random.normal(wpe_key, (config.block_size, config.n_embd))
        )
        self.blocks = nnx.vmap(lambda k: Block(config, rngs=nnx.Rngs(k)))(
            jax.random.split(blocks_key, config.n_layer)
        )
        self.ln_f = layer_norm(config, rngs=nnx.Rngs(ln_f_key))

    def embed(self, tokens_BT: Array, positions_BT: Array | None) -> Array:
        wpe = self.wpe[...]
        embedded_positions = (
            wpe[None, : tokens_BT.shape[1]] if positions_BT is None else wpe[positions_BT]
        )
        return (self.wte[...][tokens_BT] + embedded_positions).astype(self.config.compute_dtype)

    def __call__(
        self,
        tokens_BT: Array,
        positions_BT: Array | None,
        segment_ids_BT: Array | None,
        dropout_key: Array | None,
    ) -> Array:
        config = self.config
        x_BTD = self.embed(tokens_BT, positions_BT)
        keys_L = None
        if dropout_key is not None:
            embedding_key, dropout_key = jax.random.split(dropout_key)
            x_BTD = dropout(x_BTD, config.dropout, embedding_key)
            keys_L = jax.random.split(dropout_key, config.n_layer)
        graphdef, params_L = nnx.split(self.blocks)

        def run_block(x_BTD: Array, layer: tuple[Any, Array | None]) -> tuple[Array, None]:
            params, key = layer
            return nnx.merge(graphdef, params)(x_BTD, segment_ids_BT, key), None

        if config.remat != "none":
            # A loop keeps XLA from undoing the recomputation; without one, CSE must be barred.
            run_block = jax.checkpoint(
                run_block,
                policy=_REMAT_POLICIES[config.remat],
                prevent_cse=config.scan_unroll >= config.n_layer,
            )
        x_BTD, _ = jax.lax.scan(run_block, x_BTD, (params_L, keys_L), unroll=config.scan_unroll)
        return self.ln_f(x_BTD)


@functools.cache
def _graphdef(config: GPTConfig) -> Any:
    build = functools.partial(GPT, config)
    return nnx.split(nnx.eval_shape(lambda: build(key=jax.random.key(0))))[0]


def merge(config: GPTConfig, params: Params) -> GPT:
    """Returns the module with these parameters, as a stateless thing to call under `jax.jit`."""
    return nnx.merge(_graphdef(config), params)


def init(config: GPTConfig, key: Array) -> Params:
    """Returns new parameters, drawn as GPT-2's: a nested dict of float32 arrays."""
    return nnx.to_pure_dict(nnx.state(GPT(config, key=key)))


def hidden_states(
    config: GPTConfig,
    params: Params,
    tokens_BT: Array,
    *,
    positions_BT: Array | None = None,
    segment_ids_BT: Array | None = None,
    dropout_key: Array | None = None,
) -> Array:
    """Runs the model up to the head.

    Args:
        config: the model's shape.
        params: as returned by `init`.
        tokens_BT: int32 token ids.
        positions_BT: rows of the position embedding; 0..T-1 by default.
        segment_ids_BT: document numbers; given, a token attends only inside its own document.
        dropout_key: PRNG key; without it there is no dropout.

    Returns:
        x_BTD after the final LayerNorm, in the compute dtype. Logits are `x_BTD @ head(params).T`.
    """
    model = merge(config, params)
    return model(tokens_BT, positions_BT, segment_ids_BT, dropout_key)


def head(params: Params) -> Array:
    """Returns the output matrix (V, D), float32: the token embedding, tied."""
    return params["wte"]


def logits(config: GPTConfig, params: Params, x_BTD: Array) -> Array:
    """Returns float32 logits (..., V) of hidden states (..., D)."""
    w_VD = head(params).astype(config.compute_dtype)
    return jnp.einsum("...d,vd->...v", x_BTD, w_VD, preferred_element_type=jnp.float32)


def count_params(config: GPTConfig) -> tuple[int, int]:
    """Returns (all parameters, those without token and position embeddings), allocating none."""
    shapes = jax.eval_shape(lambda: init(config, jax.random.key(0)))
    total = sum(x.size for x in jax.tree.leaves(shapes))
    return total, total - shapes["wte"].size - shapes["wpe"].size


def flops_per_token(config: GPTConfig) -> int:
    """Returns the model FLOPs of a training token: 6 a matmul parameter (head too), and attention.

    As in PaLM (Chowdhery et al. 2022, appendix B): 12 L D T for attention, masked half included.
    """
    matmul_params = config.n_layer * 12 * config.n_embd**2 + config.vocab_size * config.n_embd
    return 6 * matmul_params + 12 * config.n_layer * config.n_embd * config.block_size
