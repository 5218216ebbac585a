"""Muon (Jordan et al. 2024): steps along orthogonalised momentum, for the matrices inside blocks.

The arithmetic is `optax.contrib.muon`'s. What is decided here: which axes are a matrix (L matrices
of d_in x d_out in each kernel), that queries, keys and values are three matrices although one
kernel holds them, and that the work is done once a step, also under `optax.MultiSteps`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from optax.contrib import MuonDimensionNumbers

# The factor of Moonlight (Liu et al. 2025, 2502.16982, section 2.2): the root mean square of an
# update is this times the learning rate, whatever the shape, as is AdamW's in practice. So rates
# and weight decay mean the same to both, and a shape needs no rate of its own.
_UPDATE_RMS = 0.2
_STACKED = MuonDimensionNumbers((1,), (2,))  # (L, d_in, d_out)
# Operands of the iteration, which needs no more digits; it adds up in float32 in either case.
_PRECISIONS = {"float32": "float32", "bfloat16": "BF16_BF16_F32"}


def muon(
    learning_rate: optax.Schedule,
    *,
    momentum: float,
    weight_decay: float | optax.Schedule,
    compute_dtype: str,
) -> optax.GradientTransformationExtraArgs:
    """Returns Muon with Nesterov momentum and decoupled weight decay, for a tree of kernels.

    The momentum is a mean whose start is made up for, as Adam's; five quintic Newton-Schulz steps
    bring its singular values near 1 (0.7 to 1.2). Decay is `learning_rate` x `weight_decay` a step.

    Args:
        learning_rate: by updates made.
        momentum: what the mean keeps a step.
        weight_decay: likewise, or by updates made.
        compute_dtype: of the operands of the iteration's matmuls; a CPU takes float32 always.
    """
    inner = optax.contrib.muon(
        learning_rate,
        beta=momentum,
        weight_decay=weight_decay,
        muon_weight_dimension_numbers=lambda params: jax.tree.map(lambda _: _STACKED, params),
        consistent_rms=_UPDATE_RMS,
    )

    def init(params: Any) -> Any:
        return inner.init(split_qkv(params))

    def update(grads: Any, state: Any, params: Any = None, **_: Any) -> tuple[Any, Any]:
        with jax.default_matmul_precision(_PRECISIONS[compute_dtype]):
            updates, state = inner.update(split_qkv(grads), state, split_qkv(params))
        return join_qkv(updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def split_qkv(tree: Any) -> Any:
    """Returns a tree with `c_attn.kernel` (L, D, q | k | v) as a dict of its three matrices.

    Queries are as wide as the model, D; keys and values share what is left.
    """

    def split(kernel: Array) -> dict[str, Array]:
        width = kernel.shape[1]
        bounds = [width, (width + kernel.shape[2]) // 2]
        return dict(zip("qkv", jnp.split(kernel, bounds, axis=2), strict=True))

    return _in_c_attn(split, tree)


def join_qkv(tree: Any) -> Any:
    """Returns what `split_qkv` was given."""
    return _in_c_attn(lambda qkv: jnp.concatenate([qkv[name] for name in "qkv"], axis=2), tree)


def _in_c_attn(function: Callable[[Any], Any], tree: Any, name: str = "") -> Any:
    if name == "c_attn":
        return {**tree, "kernel": function(tree["kernel"])}
    if not isinstance(tree, dict):
        return tree
    return {key: _in_c_attn(function, value, key) for key, value in tree.items()}


def at_the_last(
    transformation: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Returns `transformation`, whose work is left out where `update` is told `last=False`.

    `optax.MultiSteps` calls what it wraps at every micro-step and takes what comes of the last.
    """

    def update(
        grads: Any, state: Any, params: Any = None, *, last: Array, **_: Any
    ) -> tuple[Any, Any]:
        return jax.lax.cond(
            last,
            lambda: transformation.update(grads, state, params),
            lambda: (optax.tree.zeros_like(grads), state),
        )

    return optax.GradientTransformationExtraArgs(transformation.init, update)
