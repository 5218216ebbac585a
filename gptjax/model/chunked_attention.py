"""Causal attention over chunks of queries: plain XLA, any device, scores never T x T.

Each chunk of queries attends to the S keys up to its own end, so most of what causality hides is
never computed. As in FlashAttention (Dao et al. 2022), the forward pass keeps the logarithm of
each query's softmax sum, from which the backward pass recomputes the weights.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

CHUNK = 128  # C, queries whose scores exist at a time
SAVED = "attention"  # name, for policies of `jax.checkpoint`, of what the backward pass needs

_Residuals = tuple[Array, Array, Array, Array | None, Array, Array]


def chunked_attention(
    q_BTNH: Array, k_BTKH: Array, v_BTKH: Array, segment_ids_BT: Array | None, chunk: int = CHUNK
) -> Array:
    """`gptjax.model.attention.attention` by chunks; `chunk` need not divide T."""
    k_BTNH, v_BTNH = (repeat_heads(x, q_BTNH.shape[2]) for x in (k_BTKH, v_BTKH))
    q_BNTH, k_BNTH, v_BNTH = (x.swapaxes(1, 2) for x in (q_BTNH, k_BTNH, v_BTNH))
    return _attention(q_BNTH, k_BNTH, v_BNTH, segment_ids_BT, chunk).swapaxes(1, 2)


def repeat_heads(x_BTKH: Array, n_head: int) -> Array:
    """Repeats each head of keys or values for the G heads of queries that share it."""
    times = n_head // x_BTKH.shape[2]
    return x_BTKH if times == 1 else jnp.repeat(x_BTKH, times, axis=2)


def _bounds(length: int, chunk: int) -> list[tuple[int, int]]:
    return [(start, min(start + chunk, length)) for start in range(0, length, chunk)]


def _scores(
    q_BNCH: Array, k_BNSH: Array, segment_ids_BT: Array | None, start: int, end: int
) -> Array:
    """Returns float32 q k^T / sqrt(H) of the queries [start, end) and the keys [0, end), masked."""
    scores_BNCS = jnp.einsum("bnch,bnsh->bncs", q_BNCH, k_BNSH, preferred_element_type=jnp.float32)
    scores_BNCS = scores_BNCS / math.sqrt(q_BNCH.shape[-1])
    mask = jnp.arange(start, end)[:, None] >= jnp.arange(end)[None, :]
    mask = mask[None, None]
    if segment_ids_BT is not None:
        same = segment_ids_BT[:, start:end, None] == segment_ids_BT[:, None, :end]
        mask = mask & same[:, None]
    return jnp.where(mask, scores_BNCS, -jnp.inf)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention(
    q_BNTH: Array, k_BNTH: Array, v_BNTH: Array, segment_ids_BT: Array | None, chunk: int
) -> Array:
    return _forward(q_BNTH, k_BNTH, v_BNTH, segment_ids_BT, chunk)[0]


def _forward(
    q_BNTH: Array, k_BNTH: Array, v_BNTH: Array, segment_ids_BT: Array | None, chunk: int
) -> tuple[Array, _Residuals]:
    outs: list[Array] = []
    log_sums = []
    for start, end in _bounds(q_BNTH.shape[2], chunk):
        q_BNCH = q_BNTH[:, :, start:end]
        if outs:  # one chunk after the other, so that their scores can share memory
            outs[-1], q_BNCH = jax.lax.optimization_barrier((outs[-1], q_BNCH))
        scores_BNCS = _scores(q_BNCH, k_BNTH[:, :, :end], segment_ids_BT, start, end)
        top_BNC1 = jnp.max(scores_BNCS, axis=-1, keepdims=True)
        weights_BNCS = jnp.exp(scores_BNCS - top_BNC1)
        sum_BNC1 = jnp.sum(weights_BNCS, axis=-1, keepdims=True)
        out_BNCH = jnp.einsum(
            "bncs,bnsh->bnch",
            weights_BNCS.astype(v_BNTH.dtype),
            v_BNTH[:, :, :end],
            preferred_element_type=jnp.float32,
        )
        outs.append((out_BNCH / sum_BNC1).astype(q_BNTH.dtype))
        log_sums.append(top_BNC1 + jnp.log(sum_BNC1))
    out_BNTH, log_sum_BNT1 = (
        checkpoint_name(jnp.concatenate(chunks, axis=2), SAVED) for chunks in (outs, log_sums)
    )
    return out_BNTH, (q_BNTH, k_BNTH, v_BNTH, segment_ids_BT, out_BNTH, log_sum_BNT1)


def _backward(
    chunk: int, residuals: _Residuals, dout_BNTH: Array
) -> tuple[Array, Array, Array, None]:
    # Where both passes are in one computation, the barrier keeps XLA from reusing the scores of the
    # forward pass, which would have to be kept until here.
    (q_BNTH, k_BNTH, v_BNTH, segment_ids_BT, out_BNTH, log_sum_BNT1), dout_BNTH = (
        jax.lax.optimization_barrier((residuals, dout_BNTH))
    )
    dtype, scale = q_BNTH.dtype, 1 / math.sqrt(q_BNTH.shape[-1])
    delta_BNT1 = jnp.sum(
        dout_BNTH.astype(jnp.float32) * out_BNTH.astype(jnp.float32), axis=-1, keepdims=True
    )
    einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    dqs = []
    dk_BNTH = dv_BNTH = jnp.zeros((), jnp.float32)
    # From the last chunk, whose queries attend to all keys, to the first: sums start at full size.
    for start, end in reversed(_bounds(q_BNTH.shape[2], chunk)):
        q_BNCH, dout_BNCH = q_BNTH[:, :, start:end], dout_BNTH[:, :, start:end]
        q_BNCH, dout_BNCH, dk_BNTH, dv_BNTH = jax.lax.optimization_barrier(
            (q_BNCH, dout_BNCH, dk_BNTH, dv_BNTH)
        )
        k_BNSH, v_BNSH = k_BNTH[:, :, :end], v_BNTH[:, :, :end]
        scores_BNCS = _scores(q_BNCH, k_BNSH, segment_ids_BT, start, end)
        weights_BNCS = jnp.exp(scores_BNCS - log_sum_BNT1[:, :, start:end])
        dweights_BNCS = einsum("bnch,bnsh->bncs", dout_BNCH, v_BNSH)
        dscores_BNCS = weights_BNCS * (dweights_BNCS - delta_BNT1[:, :, start:end]) * scale
        weights_BNCS, dscores_BNCS = weights_BNCS.astype(dtype), dscores_BNCS.astype(dtype)
        dqs.append(einsum("bncs,bnsh->bnch", dscores_BNCS, k_BNSH).astype(dtype))
        dk_BNSH = einsum("bncs,bnch->bnsh", dscores_BNCS, q_BNCH)
        dv_BNSH = einsum("bncs,bnch->bnsh", weights_BNCS, dout_BNCH)
        if end == q_BNTH.shape[2]:
            dk_BNTH, dv_BNTH = dk_BNSH, dv_BNSH
        else:
            dk_BNTH = dk_BNTH.at[:, :, :end].add(dk_BNSH)
            dv_BNTH = dv_BNTH.at[:, :, :end].add(dv_BNSH)
    dq_BNTH = jnp.concatenate(dqs[::-1], axis=2)
    return dq_BNTH, dk_BNTH.astype(dtype), dv_BNTH.astype(dtype), None


_attention.defvjp(_forward, _backward)
