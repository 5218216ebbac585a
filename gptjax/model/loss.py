"""Next-token cross-entropy over chunks of tokens; sums, so that any set can be averaged over."""

import jax
import jax.numpy as jnp
from jax import Array


def cross_entropy_sum(
    x_BTD: Array, w_VD: Array, targets_BT: Array, loss_mask_BT: Array, *, chunk: int
) -> Array:
    """Returns the negative log-likelihood (float32, nats), summed over the targets in the mask.

    The output matrix `w_VD` is cast to the dtype of the hidden states `x_BTD`; logits, softmax and
    sum are float32. Logits of `chunk` tokens exist at a time, in both passes (the backward pass
    computes them again); it divides M; 0 for all.
    """
    x_MD = x_BTD.reshape(-1, x_BTD.shape[-1])
    targets_M, mask_M = targets_BT.reshape(-1), loss_mask_BT.reshape(-1)
    w_VD = w_VD.astype(x_BTD.dtype)

    def chunk_sum(x_CD: Array, targets_C: Array, mask_C: Array) -> Array:
        logits_CV = jnp.einsum("cd,vd->cv", x_CD, w_VD, preferred_element_type=jnp.float32)
        target_logits_C = jnp.take_along_axis(logits_CV, targets_C[:, None], axis=1)[:, 0]
        nats_C = jax.nn.logsumexp(logits_CV, axis=1) - target_logits_C
        return jnp.sum(nats_C * mask_C.astype(jnp.float32))

    if chunk in (0, x_MD.shape[0]):
        return chunk_sum(x_MD, targets_M, mask_M)

    def add_chunk(total: Array, xs: tuple[Array, Array, Array]) -> tuple[Array, None]:
        return total + jax.checkpoint(chunk_sum, prevent_cse=False)(*xs), None

    chunks = (
        x_MD.reshape(-1, chunk, x_MD.shape[1]),
        targets_M.reshape(-1, chunk),
        mask_M.reshape(-1, chunk),
    )
    total, _ = jax.lax.scan(add_chunk, jnp.zeros((), jnp.float32), chunks)
    return total
