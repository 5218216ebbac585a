"""Muon (Jordan et al. 2024): steps along orthogonalised momentum, for the matrices inside blocks.

The arithmetic is `optax.contrib.muon`'s. This file decides which axes are a matrix (L matrices of
d_in x d_out in each kernel), and splits the kernel of queries, keys and values into three.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from ml_collections import ConfigDict
from optax.contrib import MuonDimensionNumbers

COEFFICIENTS: Any = {
    "jordan": (3.4445, -4.7750, 2.0315),
    # Amsel et al. 2025 (2505.16932), for 5 steps from singular values of 1e-3.
    "polar_express": (
        (8.156554524902461, -22.48329292557795, 15.878769915207462),
        (4.042929935166739, -2.808917465908714, 0.5000178451051316),
        (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
        (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
        (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
    ),
}
_STACKED = MuonDimensionNumbers((1,), (2,))  # (L, d_in, d_out)
# Operands of the iteration, which needs no more digits; sums are float32 in either case.
_PRECISIONS = {"float32": "float32", "bfloat16": "BF16_BF16_F32"}


def _rms(update: Array) -> Array:
    """Moonlight's factor (Liu et al. 2025, 2502.16982, 2.2): an RMS of 0.2 for any shape."""
    return 0.2 * math.sqrt(max(update.shape[1:])) * update


def _spectral(update: Array) -> Array:
    """Jordan's factor: an input of unit RMS moves what a layer gives by as much at any width."""
    return math.sqrt(max(1.0, update.shape[2] / update.shape[1])) * update


_SCALE = {"rms": _rms, "spectral": _spectral}


class NeuronState(NamedTuple):
    """The mean square of each neuron's updates, (L, 1, d_out), and their number."""

    n_updates: Array
    mean_square: Any


def equal_neurons(beta2: float) -> optax.GradientTransformation:
    """Divides each neuron's update by its RMS over time: NorMuon (Li et al. 2025, 2510.05491).

    The Frobenius norm of each matrix (L, d_in, d_out) stays.
    """

    def init(params: Any) -> NeuronState:
        zeros = jax.tree.map(lambda p: jnp.zeros((p.shape[0], 1, p.shape[2])), params)
        return NeuronState(jnp.zeros((), jnp.int32), zeros)

    def update(updates: Any, state: NeuronState, params: Any = None) -> tuple[Any, NeuronState]:
        del params
        n_updates = state.n_updates + 1
        squares = jax.tree.map(lambda u: jnp.mean(jnp.square(u), 1, keepdims=True), updates)
        means = optax.tree.update_moment(squares, state.mean_square, beta2, 1)
        corrected = optax.tree.bias_correction(means, beta2, n_updates)
        updates = jax.tree.map(_divided, updates, corrected)
        return updates, NeuronState(n_updates, means)

    return optax.GradientTransformation(init, update)


def _divided(update: Array, mean_square: Array) -> Array:
    divided = update / (jnp.sqrt(mean_square) + 1e-10)
    norms = [jnp.sqrt(jnp.sum(jnp.square(x), (1, 2), keepdims=True)) for x in (update, divided)]
    return divided * (norms[0] / (norms[1] + 1e-10))


def decay(weight_decay: float | optax.Schedule, *, cautious: bool) -> optax.GradientTransformation:
    """Adds weight decay; `cautious`: where an update shrinks an entry (Chen et al. 2510.12402)."""
    added = optax.add_decayed_weights(weight_decay)
    if not cautious:
        return added

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        decayed, state = added.update(updates, state, params)
        chosen = jax.tree.map(lambda d, u, p: jnp.where(u * p > 0, d, u), decayed, updates, params)
        return chosen, state

    return optax.GradientTransformation(added.init, update)


def muon(
    learning_rate: optax.Schedule,
    *,
    optim: ConfigDict,
    weight_decay: float | optax.Schedule,
    compute_dtype: str,
    spread: Callable[[Array], Array] = lambda kernel: kernel,
) -> optax.GradientTransformationExtraArgs:
    """Returns Muon with Nesterov momentum and decoupled weight decay, for a tree of kernels.

    The momentum, a bias-corrected mean as Adam's, keeps the share `optim.muon_momentum` a step;
    five quintic steps bring its singular values near 1 (0.7 to 1.2). `compute_dtype` is that of
    the operands of their matmuls; a CPU always takes float32. `spread` states where the matrices
    (L, d_in, d_out) are during the iteration: whole ones, so that their matmuls exchange nothing.
    """
    inner = optax.chain(
        optax.contrib.scale_by_muon(
            ns_coeffs=COEFFICIENTS[optim.muon_coefficients],
            beta=optim.muon_momentum,
            weight_dimension_numbers=lambda params: jax.tree.map(lambda _: _STACKED, params),
        ),
        equal_neurons(optim.muon_beta2) if optim.muon_beta2 else optax.identity(),
        optax.stateless(lambda updates, _: jax.tree.map(_SCALE[optim.muon_scale], updates)),
        decay(weight_decay, cautious=optim.cautious_decay),
        optax.scale_by_learning_rate(learning_rate),
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
