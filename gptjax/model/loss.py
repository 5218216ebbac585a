"""Cross-entropy over chunks of tokens; sums, so that any set can be averaged over."""

import functools
import math

import jax
import jax.numpy as jnp
from jax import Array

_Residuals = tuple[Array, Array, Array]


def cross_entropy_sum(
    x_BTD: Array, w_VD: Array, targets_BT: Array, loss_mask_BT: Array, chunk: int
) -> Array:
    """Returns `multi_token_loss` without later tokens: the sum over the next ones only."""
    weights_K = jnp.zeros(0)
    return multi_token_loss(x_BTD, w_VD, targets_BT, loss_mask_BT, weights_K, chunk)[0]


def multi_token_loss(
    x_BTD: Array, w_VD: Array, targets_BT: Array, loss_mask_BT: Array, weights_K: Array, chunk: int
) -> tuple[Array, Array]:
    """Returns (the loss, that of the next tokens alone), float32 sums over the mask, in nats.

    The output matrix `w_VD` is cast to the dtype of the hidden states `x_BTD`; logits, softmax and
    sum are float32. Logits of `chunk` tokens exist at a time; it divides M; 0 for all.

    To the negative log-likelihood of each target the loss adds `weights_K[k]` times that of the
    target k + 1 positions later in the row, under the same logits: the next tokens of Gloeckle et
    al. 2024 without heads of their own, as in modded-nanogpt, so that a model is unchanged by it.

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
    return _weighted_sum(x_BTD, w_VD, targets_BTK, weights_BTK, chunk)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _weighted_sum(
    x_BTD: Array, w_VD: Array, targets_BTK: Array, weights_BTK: Array, chunk: int
) -> tuple[Array, Array]:
    w_VD = w_VD.astype(x_BTD.dtype)

    def add_chunk(total_2: Array, rows: tuple[Array, Array, Array]) -> tuple[Array, None]:
        x_CD, targets_CK, weights_CK = rows
        return total_2 + _nats(*_logits(x_CD, w_VD), targets_CK, weights_CK), None

    rows = _chunks(x_BTD, targets_BTK, weights_BTK, chunk)
    total_2 = jax.lax.scan(add_chunk, jnp.zeros(2, jnp.float32), rows)[0]
    return total_2[0], total_2[1]


def _forward(
    x_BTD: Array, w_VD: Array, targets_BTK: Array, weights_BTK: Array, chunk: int
) -> tuple[tuple[Array, Array], _Residuals]:
    w_float32_VD, w_VD = w_VD, w_VD.astype(x_BTD.dtype)
    einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

    def add_chunk(
        totals: tuple[Array, Array], rows: tuple[Array, Array, Array]
    ) -> tuple[tuple[Array, Array], Array]:
        total_2, dw_VD = totals
        x_CD, targets_CK, weights_CK = rows
        logits_CV, log_sum_C = _logits(x_CD, w_VD)
        dlogits_CV = jnp.exp(logits_CV - log_sum_C[:, None]) * weights_CK.sum(1, keepdims=True)
        for k in range(targets_CK.shape[1]):
            one_hot_CV = targets_CK[:, k, None] == jnp.arange(w_VD.shape[0])[None, :]
            dlogits_CV = dlogits_CV - one_hot_CV * weights_CK[:, k, None]
        dlogits_CV = dlogits_CV.astype(x_CD.dtype)
        dx_CD = einsum("cv,vd->cd", dlogits_CV, w_VD)
        dw_VD = dw_VD + einsum("cv,cd->vd", dlogits_CV, x_CD)
        total_2 = total_2 + _nats(logits_CV, log_sum_C, targets_CK, weights_CK)
        return (total_2, dw_VD), dx_CD

    rows = _chunks(x_BTD, targets_BTK, weights_BTK, chunk)
    zeros = jnp.zeros(2, jnp.float32), jnp.zeros_like(w_float32_VD, jnp.float32)
    (total_2, dw_VD), dx_CD = jax.lax.scan(add_chunk, zeros, rows)
    residuals = dx_CD.reshape(x_BTD.shape), dw_VD, jnp.zeros((), x_BTD.dtype)
    return (total_2[0], total_2[1]), residuals


def _backward(
    chunk: int, residuals: _Residuals, cotangents: tuple[Array, Array]
) -> tuple[Array, Array, None, None]:
    del chunk
    dx_BTD, dw_VD, like_x = residuals
    cotangent, _ = cotangents
    return (cotangent * dx_BTD).astype(like_x.dtype), cotangent * dw_VD, None, None


_weighted_sum.defvjp(_forward, _backward)


def _chunks(
    x_BTD: Array, targets_BTK: Array, weights_BTK: Array, chunk: int
) -> tuple[Array, Array, Array]:
    """Returns the arrays with their rows flattened and cut: [M / C, C, ...]."""
    *rows, n_targets = targets_BTK.shape
    chunk = chunk or math.prod(rows)
    return (
        x_BTD.reshape(-1, chunk, x_BTD.shape[-1]),
        targets_BTK.reshape(-1, chunk, n_targets),
        weights_BTK.reshape(-1, chunk, n_targets),
    )


def _logits(x_CD: Array, w_VD: Array) -> tuple[Array, Array]:
    """Returns float32 logits and the logarithm of each row's sum of exponentials."""
    logits_CV = jnp.einsum("cd,vd->cv", x_CD, w_VD, preferred_element_type=jnp.float32)
    return logits_CV, jax.nn.logsumexp(logits_CV, axis=1)


def _nats(logits_CV: Array, log_sum_C: Array, targets_CK: Array, weights_CK: Array) -> Array:
    """Returns two sums: over all targets, and over the first of each token."""
    target_logits_CK = jnp.take_along_axis(logits_CV, targets_CK, axis=1)
    nats_K = jnp.sum((log_sum_C[:, None] - target_logits_CK) * weights_CK, axis=0)
    return jnp.stack([jnp.sum(nats_K), nats_K[0]])
