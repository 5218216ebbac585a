"""Next-token cross-entropy over chunks of tokens; sums, so that any set can be averaged over."""

import functools

import jax
import jax.numpy as jnp
from jax import Array

_Residuals = tuple[Array, Array, Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def cross_entropy_sum(
    x_BTD: Array, w_VD: Array, targets_BT: Array, loss_mask_BT: Array, chunk: int
) -> Array:
    """Returns the negative log-likelihood (float32, nats), summed over the targets in the mask.

    The output matrix `w_VD` is cast to the dtype of the hidden states `x_BTD`; logits, softmax and
    sum are float32. Logits of `chunk` tokens exist at a time; it divides M; 0 for all.

    Where it is differentiated, the forward pass computes the gradients too, for they are linear in
    the cotangent, a scalar: no logits are kept or computed again. The gradient of the logits has
    the dtype of `x_BTD`, so that no matmul has float32 operands beside bfloat16 ones; sums over V,
    M and the chunks are float32.
    """
    w_VD = w_VD.astype(x_BTD.dtype)

    def add_chunk(total: Array, rows: tuple[Array, Array, Array]) -> tuple[Array, None]:
        x_CD, targets_C, mask_C = rows
        logits_CV, log_sum_C = _logits(x_CD, w_VD)
        return total + _nats(logits_CV, log_sum_C, targets_C, mask_C), None

    rows = _chunks(x_BTD, targets_BT, loss_mask_BT, chunk)
    return jax.lax.scan(add_chunk, jnp.zeros((), jnp.float32), rows)[0]


def _forward(
    x_BTD: Array, w_VD: Array, targets_BT: Array, loss_mask_BT: Array, chunk: int
) -> tuple[Array, _Residuals]:
    w_float32_VD, w_VD = w_VD, w_VD.astype(x_BTD.dtype)
    einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

    def add_chunk(
        totals: tuple[Array, Array], rows: tuple[Array, Array, Array]
    ) -> tuple[tuple[Array, Array], Array]:
        total, dw_VD = totals
        x_CD, targets_C, mask_C = rows
        logits_CV, log_sum_C = _logits(x_CD, w_VD)
        softmax_CV = jnp.exp(logits_CV - log_sum_C[:, None])
        one_hot_CV = targets_C[:, None] == jnp.arange(w_VD.shape[0])[None, :]
        dlogits_CV = (softmax_CV - one_hot_CV) * mask_C.astype(jnp.float32)[:, None]
        dlogits_CV = dlogits_CV.astype(x_CD.dtype)
        dx_CD = einsum("cv,vd->cd", dlogits_CV, w_VD)
        dw_VD = dw_VD + einsum("cv,cd->vd", dlogits_CV, x_CD)
        return (total + _nats(logits_CV, log_sum_C, targets_C, mask_C), dw_VD), dx_CD

    rows = _chunks(x_BTD, targets_BT, loss_mask_BT, chunk)
    zeros = jnp.zeros((), jnp.float32), jnp.zeros_like(w_float32_VD, jnp.float32)
    (total, dw_VD), dx_CD = jax.lax.scan(add_chunk, zeros, rows)
    return total, (dx_CD.reshape(x_BTD.shape), dw_VD, jnp.zeros((), x_BTD.dtype))


def _backward(
    chunk: int, residuals: _Residuals, cotangent: Array
) -> tuple[Array, Array, None, None]:
    del chunk
    dx_BTD, dw_VD, like_x = residuals
    return (cotangent * dx_BTD).astype(like_x.dtype), cotangent * dw_VD, None, None


cross_entropy_sum.defvjp(_forward, _backward)


def _chunks(
    x_BTD: Array, targets_BT: Array, loss_mask_BT: Array, chunk: int
) -> tuple[Array, Array, Array]:
    """Returns the arrays with their rows flattened and cut: [M / C, C, ...]."""
    chunk = chunk or targets_BT.size
    return (
        x_BTD.reshape(-1, chunk, x_BTD.shape[-1]),
        targets_BT.reshape(-1, chunk),
        loss_mask_BT.reshape(-1, chunk),
    )


def _logits(x_CD: Array, w_VD: Array) -> tuple[Array, Array]:
    """Returns float32 logits and the logarithm of each row's sum of exponentials."""
    logits_CV = jnp.einsum("cd,vd->cv", x_CD, w_VD, preferred_element_type=jnp.float32)
    return logits_CV, jax.nn.logsumexp(logits_CV, axis=1)


def _nats(logits_CV: Array, log_sum_C: Array, targets_C: Array, mask_C: Array) -> Array:
    target_logits_C = jnp.take_along_axis(logits_CV, targets_C[:, None], axis=1)[:, 0]
    return jnp.sum((log_sum_C - target_logits_C) * mask_C.astype(jnp.float32))
