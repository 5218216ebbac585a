"""Muon (Jordan et al. 2024): steps along orthogonalised momentum, for the matrices inside blocks.

The arithmetic is `optax.contrib.muon`'s. This file decides which axes are a matrix (L matrices of
d_in x d_out in each kernel), and splits the kernel of queries, keys and values into three.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from optax.contrib import MuonDimensionNumbers

# What a learning rate is, by optim.muon_scale: optax's `consistent_rms`. With a number, the root
# mean square of an update is this times the rate for any shape, as AdamW's is in practice
# (Moonlight, Liu et al. 2025, 2502.16982, section 2.2); its spectral norm grows as the root of the
# width. With None, that norm is near the rate x sqrt(max(1, d_out / d_in)), so that an input of
# unit RMS moves what a layer gives by as much at any width.
_CONSISTENT_RMS = {"rms": 0.2, "spectral": None}
_STACKED = MuonDimensionNumbers((1,), (2,))  # (L, d_in, d_out)
# Operands of the iteration, which needs no more digits; sums are float32 in either case.
_PRECISIONS = {"float32": "float32", "bfloat16": "BF16_BF16_F32"}


def muon(
    learning_rate: optax.Schedule,
    *,
    momentum: float,
    weight_decay: float | optax.Schedule,
    scale: str,
    compute_dtype: str,
    spread: Callable[[Array], Array] = lambda kernel: kernel,
) -> optax.GradientTransformationExtraArgs:
    """Returns Muon with Nesterov momentum and decoupled weight decay, for a tree of kernels.

    The momentum, a bias-corrected mean as Adam's, keeps the share `momentum` a step; five quintic
    Newton-Schulz steps bring its singular values near 1 (0.7 to 1.2), and `scale` says what
    multiple of the rate they become. `compute_dtype` is that of the operands of their matmuls; a
    CPU always takes float32. `spread` states where the matrices (L, d_in, d_out) are during the
    iteration: whole ones, so that their matmuls exchange nothing.
    """
    inner = optax.contrib.muon(
        learning_rate,
        beta=momentum,
        weight_decay=weight_decay,
        muon_weight_dimension_numbers=lambda params: jax.tree.map(lambda _: _STACKED, params),
        consistent_rms=_CONSISTENT_RMS[scale],
    )

    def init(params: Any) -> Any:
        return inner.init(split_qkv(params))

    def update(grads: Any, state: Any, params: Any = None, **_: Any) -> tuple[Any, Any]:
        grads = jax.tree.map(spread, split_qkv(grads))
        with jax.default_matmul_precision(_PRECISIONS[compute_dtype]):
            updates, state = inner.update(grads, state, split_qkv(params))
        return join_qkv(jax.tree.map(spread, updates)), state

    return optax.GradientTransformationExtraArgs(init, update)


def split_qkv(tree: Any) -> Any:
    """Returns the tree with `c_attn.kernel` (L, D, D + 2 K H) as a dict of its three matrices."""

    def split(kernel: Array) -> dict[str, Array]:
        width = kernel.shape[1]
        bounds = [width, (width + kernel.shape[2]) // 2]
        return dict(zip("qkv", jnp.split(kernel, bounds, axis=2), strict=True))

    return _map_c_attn(split, tree)


def join_qkv(tree: Any) -> Any:
    """Inverts `split_qkv`."""
    return _map_c_attn(lambda qkv: jnp.concatenate([qkv[name] for name in "qkv"], axis=2), tree)


def _map_c_attn(function: Callable[[Any], Any], tree: Any, name: str = "") -> Any:
    if name == "c_attn":
        return {**tree, "kernel": function(tree["kernel"])}
    if not isinstance(tree, dict):
        return tree
    return {key: _map_c_attn(function, value, key) for key, value in tree.items()}
