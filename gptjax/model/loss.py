"""Cross-entropy over chunks of tokens; sums, so that any set can be averaged over."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

_Residuals = tuple[Array, Array, Array]
_Rows = tuple[Array, ...]  # hidden states, targets, their weights, and a SoftTargets' states


class SoftTargets(NamedTuple):
    """What another model, of width E, predicts of the next tokens: constants of the loss."""

    x_BTE: Array  # its hidden states, float32 or bfloat16
    w_VE: Array  # its output matrix, of the same dtype
    weight: float  # share of the loss on a next token, 0 to 1


def cross_entropy_sum(
    x_BTD: Array, w_VD: Array, targets_BT: Array, loss_mask_BT: Array, chunk: int
) -> Array:
    """Returns `multi_token_loss` without later tokens: the sum over the next ones only."""
    weights_K = jnp.zeros(0)
    return multi_token_loss(x_BTD, w_VD, targets_BT, loss_mask_BT, weights_K, chunk)[0]


def multi_token_loss(
    x_BTD: Array,
    w_VD: Array,
    targets_BT: Array,
    loss_mask_BT: Array,
    weights_K: Array,
    chunk: int,
    soft: SoftTargets | None = None,
) -> tuple[Array, Array]:
    """Returns (the loss, that of the next tokens alone), float32 sums over the mask, in nats.

    The output matrix `w_VD` is cast to the dtype of the hidden states `x_BTD`; logits, softmax and
    sum are float32. Logits of `chunk` tokens exist at a time; it divides M; 0 for all.

    To the negative log-likelihood of each target the loss adds `weights_K[k]` times that of the
    target k + 1 positions later in the row, under the same logits: the next tokens of Gloeckle et
    al. 2024 without heads of their own, as in modded-nanogpt, so that a model is unchanged by it.

    With `soft`, the share `soft.weight` of the loss on a next token is the cross-entropy to the
    distribution of another model (Hinton et al. 2015, at temperature 1), and the rest that to the
    target.

    Where the loss is differentiated, the forward pass computes the gradients too, for they are
    linear in the cotangent, a scalar: no logits are kept or computed again. The gradient of the
    logits has the dtype of `x_BTD`, so that no matmul has float32 operands beside bfloat16 ones;
    sums over V, M and the chunks are float32. The second result has no derivative.
    """
    weights_BT1 = loss_mask_BT.astype(jnp.float32)[..., None]
    targets, weights = [targets_BT[..., None]], [weights_BT1]
    for k in range(1, len(weights_K) + 1):
        later = [(0, 0), (0, k), (0, 0)]  # past the end of a row: no target
        targets.append(jnp.pad(targets[0][:, k:], later))
        weights.append(weights_K[k - 1] * weights_BT1 * jnp.pad(weights_BT1[:, k:], later))
    targets_BTK, weights_BTK = jnp.concatenate(targets, -1), jnp.concatenate(weights, -1)
    return _weighted_sum(x_BTD, w_VD, _Targets(targets_BTK, weights_BTK, soft), chunk)


class _Targets(NamedTuple):
    """What the logits of each token are compared with."""

    targets_BTK: Array
    weights_BTK: Array
    soft: SoftTargets | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _weighted_sum(x_BTD: Array, w_VD: Array, targets: _Targets, chunk: int) -> tuple[Array, Array]:
    w_VD = w_VD.astype(x_BTD.dtype)

    def add_chunk(total_2: Array, rows: _Rows) -> tuple[Array, None]:
        x_CD, targets_CK, weights_CK = rows[:3]
        logits = _logits(x_CD, w_VD)
        change_CV = _target_change(targets.soft, rows)
        return total_2 + _nats(*logits, targets_CK, weights_CK, change_CV), None

    rows = _chunks(x_BTD, targets, chunk)
    total_2 = jax.lax.scan(add_chunk, jnp.zeros(2, jnp.float32), rows)[0]
    return total_2[0], total_2[1]


def _forward(
    x_BTD: Array, w_VD: Array, targets: _Targets, chunk: int
) -> tuple[tuple[Array, Array], _Residuals]:
    w_float32_VD, w_VD = w_VD, w_VD.astype(x_BTD.dtype)
    einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

    def add_chunk(totals: tuple[Array, Array], rows: _Rows) -> tuple[tuple[Array, Array], Array]:
        total_2, dw_VD = totals
        x_CD, targets_CK, weights_CK = rows[:3]
        logits_CV, log_sum_C = _logits(x_CD, w_VD)
        dlogits_CV = jnp.exp(logits_CV - log_sum_C[:, None]) * weights_CK.sum(1, keepdims=True)
        for k in range(targets_CK.shape[1]):
            one_hot_CV = targets_CK[:, k, None] == jnp.arange(w_VD.shape[0])[None, :]
            dlogits_CV = dlogits_CV - one_hot_CV * weights_CK[:, k, None]
        if (target_change_CV := _target_change(targets.soft, rows)) is not None:
            dlogits_CV = dlogits_CV - target_change_CV
        dlogits_CV = dlogits_CV.astype(x_CD.dtype)
        dx_CD = einsum("cv,vd->cd", dlogits_CV, w_VD)
        dw_VD = dw_VD + einsum("cv,cd->vd", dlogits_CV, x_CD)
        total_2 = total_2 + _nats(logits_CV, log_sum_C, targets_CK, weights_CK, target_change_CV)
        return (total_2, dw_VD), dx_CD

    rows = _chunks(x_BTD, targets, chunk)
    zeros = jnp.zeros(2, jnp.float32), jnp.zeros_like(w_float32_VD, jnp.float32)
    (total_2, dw_VD), dx_CD = jax.lax.scan(add_chunk, zeros, rows)
    residuals = dx_CD.reshape(x_BTD.shape), dw_VD, jnp.zeros((), x_BTD.dtype)
    return (total_2[0], total_2[1]), residuals


def _backward(
    chunk: int, residuals: _Residuals, cotangents: tuple[Array, Array]
) -> tuple[Array, Array, None]:
    del chunk
    dx_BTD, dw_VD, like_x = residuals
    cotangent, _ = cotangents
    return (cotangent * dx_BTD).astype(like_x.dtype), cotangent * dw_VD, None


_weighted_sum.defvjp(_forward, _backward)


def _chunks(x_BTD: Array, targets: _Targets, chunk: int) -> _Rows:
    """Returns the arrays with their rows flattened and cut: [M / C, C, ...]."""
    arrays = [x_BTD, targets.targets_BTK, targets.weights_BTK]
    if targets.soft is not None:
        arrays.append(targets.soft.x_BTE)
    chunk = chunk or math.prod(x_BTD.shape[:2])
    return tuple(x.reshape(-1, chunk, x.shape[-1]) for x in arrays)


def _target_change(soft: SoftTargets | None, rows: _Rows) -> Array | None:
    """Returns what `soft` adds to the weight of each target: float32 (C, V), a sum of 0 over V."""
    if soft is None:
        return None
    _, targets_CK, weights_CK, x_CE = rows
    logits_CV, log_sum_C = _logits(x_CE, soft.w_VE)
    one_hot_CV = targets_CK[:, :1] == jnp.arange(soft.w_VE.shape[0])[None, :]
    target_change_CV = jnp.exp(logits_CV - log_sum_C[:, None]) - one_hot_CV
    return soft.weight * weights_CK[:, :1] * target_change_CV


def _logits(x_CD: Array, w_VD: Array) -> tuple[Array, Array]:
    """Returns float32 logits and the logarithm of each row's sum of exponentials."""
    logits_CV = jnp.einsum("cd,vd->cv", x_CD, w_VD, preferred_element_type=jnp.float32)
    return logits_CV, jax.nn.logsumexp(logits_CV, axis=1)


def _nats(
    logits_CV: Array,
    log_sum_C: Array,
    targets_CK: Array,
    weights_CK: Array,
    target_change_CV: Array | None,
) -> Array:
    """Returns two sums: over all targets with the change of their weights, and over the next."""
    target_logits_CK = jnp.take_along_axis(logits_CV, targets_CK, axis=1)
    nats_K = jnp.sum((log_sum_C[:, None] - target_logits_CK) * weights_CK, axis=0)
    total = jnp.sum(nats_K)
    if target_change_CV is not None:
        total = total - jnp.sum(target_change_CV * logits_CV)
    return jnp.stack([total, nats_K[0]])
