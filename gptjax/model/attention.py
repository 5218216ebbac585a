"""Causal self-attention, optionally confined to documents: one function, four implementations.

- `xla`: matmuls and a softmax from `jax.nn`; builds the T x T scores. The reference.
- `chunked`: chunked_attention.py; any device, no T x T array. On a GPU memory is linear in T; a
  CPU schedules the chunks side by side.
- `cudnn`: NVIDIA's flash attention; fastest, half precision only, and it takes no document mask.
- `pallas`: JAX's flash attention in Triton; NVIDIA GPUs, document masks too.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental.pallas.ops.gpu.attention import mha
from ml_collections import ConfigDict

from configs.errors import UserError
from gptjax.common.xla_options import compiler_options
from gptjax.model.chunked_attention import CHUNK, SAVED, chunked_attention, repeat_heads
from gptjax.model.layers import compute_dtype

KERNELS = ("cudnn", "pallas")  # of NVIDIA GPUs, fastest first
# The forward pass of cuDNN, and that of `mha`, which calls itself in its rule of differentiation.
_FORWARD_PRIMITIVES = ("dot_product_attention_fwd_wrapper", "custom_vjp_call")
_PALLAS_BLOCK = 128  # queries and keys that one program of `mha` holds at a time
_PALLAS_MIN_BLOCK = 16  # rows of Triton's smallest matmul


def attention(
    q_BTNH: Array,
    k_BTKH: Array,
    v_BTKH: Array,
    segment_ids_BT: Array | None = None,
    *,
    implementation: str,
) -> Array:
    """Returns softmax(q k^T / sqrt(H)) v over earlier positions, of q's shape and dtype.

    All inputs have one dtype; the softmax is float32. Each key head serves G heads of queries. With
    `segment_ids_BT`, document numbers, a query attends only to keys of its own document; `cudnn`
    has no such mask and raises UserError.
    """
    match implementation:
        case "xla":
            return _xla(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT)
        case "chunked":
            return chunked_attention(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT)
        case "cudnn":
            if segment_ids_BT is not None:
                raise UserError(
                    "cuDNN's attention takes no document mask: use model.attention=auto, pallas or "
                    "chunked with data.document_mask=True."
                )
            return jax.nn.dot_product_attention(
                q_BTNH, k_BTKH, v_BTKH, is_causal=True, implementation="cudnn"
            )
        case "pallas":
            return pallas_attention(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT)
    raise ValueError(f"unknown implementation of attention: {implementation!r}")


def is_attention(primitive: Any, *_: Any, **params: Any) -> bool:
    """Policy of `jax.checkpoint` that saves the results of attention which is one kernel.

    Matmuls outside of it are what policies for dots save.
    """
    return primitive.name in _FORWARD_PRIMITIVES or params.get("name") == SAVED


def _xla(q_BTNH: Array, k_BTKH: Array, v_BTKH: Array, segment_ids_BT: Array | None) -> Array:
    mask_B1TT = None
    if segment_ids_BT is not None:
        mask_B1TT = (segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :])[:, None]
    return jax.nn.dot_product_attention(
        q_BTNH, k_BTKH, v_BTKH, mask=mask_B1TT, is_causal=True, implementation="xla"
    )


def pallas_attention(
    q_BTNH: Array,
    k_BTKH: Array,
    v_BTKH: Array,
    segment_ids_BT: Array | None,
    *,
    interpret: bool = False,
) -> Array:
    """`attention` by the Pallas kernel; `interpret` runs it on any device, slowly.

    Rows are padded at their end to whole blocks: causality hides the padding.
    """
    _, length, n_head, width = q_BTNH.shape
    k_BTNH, v_BTNH = repeat_heads(k_BTKH, n_head), repeat_heads(v_BTKH, n_head)
    block = min(_PALLAS_BLOCK, max(_PALLAS_MIN_BLOCK, 1 << (length - 1).bit_length()))
    padding = -length % block
    if padding:
        q_BTNH, k_BTNH, v_BTNH = (
            jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))) for x in (q_BTNH, k_BTNH, v_BTNH)
        )
        if segment_ids_BT is not None:
            segment_ids_BT = jnp.pad(segment_ids_BT, ((0, 0), (0, padding)))
    out_BTNH = mha(
        q_BTNH,
        k_BTNH,
        v_BTNH,
        segment_ids_BT,
        sm_scale=width**-0.5,
        causal=True,
        interpret=interpret,
    )
    return out_BTNH[:, :length]


def choose(config: ConfigDict) -> tuple[str, str]:
    """Returns (implementation that a run on this machine uses, reason).

    On a GPU a kernel is taken only if its results, forward and backward, equal those of `chunked`
    for rows, heads and dtype of the run: `auto` takes the first that passes, and `chunked` if none
    does. Raises UserError if `config` names one that does not pass.
    """
    model, document_mask = config.model, config.data.document_mask
    probe = functools.partial(
        _probe,
        length=model.block_size,
        n_head=model.n_head,
        n_kv_head=model.n_kv_head or model.n_head,
        width=model.n_embd // model.n_head,
        dtype=compute_dtype(config),
        document_mask=document_mask,
        deterministic=config.deterministic,
        backend=jax.default_backend(),
    )
    if model.attention != "auto":
        if model.attention in KERNELS and (problem := probe(model.attention)) is not None:
            raise UserError(
                f"model.attention = {model.attention!r} does not work here: {problem}. Use "
                f"model.attention=auto."
            )
        return model.attention, "model.attention names it"
    if jax.default_backend() != "gpu":
        if model.block_size > CHUNK:
            return "chunked", f"no GPU, rows of more than {CHUNK} tokens"
        return "xla", f"no GPU, rows of at most {CHUNK} tokens"
    failures: list[str] = []
    for name in kernels(document_mask):
        if (problem := probe(name)) is None:
            return name, "; ".join([*failures, "it equals the reference here"])
        failures.append(f"{name} does not work here: {problem}")
    return "chunked", "; ".join(failures)


def fits_cudnn(width: int) -> bool:
    """Returns whether cuDNN's attention takes heads of this width."""
    return width % 8 == 0 and width <= 128


def kernels(document_mask: bool) -> tuple[str, ...]:
    """Returns the kernels that `auto` tries on a GPU, fastest first."""
    return KERNELS[1:] if document_mask else KERNELS


@functools.cache
def _probe(
    name: str,
    *,
    length: int,
    n_head: int,
    n_kv_head: int,
    width: int,
    dtype: str,
    document_mask: bool,
    deterministic: bool,
    backend: str,
) -> str | None:
    """Returns the problem with a kernel on this backend; None if it works."""
    if backend != "gpu":
        return "it needs an NVIDIA GPU"
    rng = np.random.default_rng(0)
    q, direction = jnp.asarray(rng.normal(size=(2, 2, length, n_head, width)), dtype)
    k, v = jnp.asarray(rng.normal(size=(2, 2, length, n_kv_head, width)), dtype)
    segment_ids = None
    if document_mask:
        segment_ids = jnp.asarray(np.sort(rng.integers(1, 4, (2, length))), jnp.int32)

    options = compiler_options(deterministic=deterministic)

    def out_and_grads(name: str) -> tuple[Array, ...]:
        def run(q: Array, k: Array, v: Array) -> tuple[Array, ...]:
            out, pullback = jax.vjp(
                lambda q, k, v: attention(q, k, v, segment_ids, implementation=name), q, k, v
            )
            return out, *pullback(direction)

        return jax.device_get(jax.jit(run, compiler_options=options)(q, k, v))

    try:
        results = out_and_grads(name)
    except Exception as exception:  # whatever a driver, library or compiler raises
        return f"{type(exception).__name__}: {str(exception).strip().partition(chr(10))[0]}"
    for a, b in zip(results, out_and_grads("chunked"), strict=True):
        error, largest = np.abs(np.float32(a) - np.float32(b)).max(), np.abs(np.float32(b)).max()
        # The error of rounding to 8 bits is below; that of a wrong mask is far above.
        if not error <= 2**-5 * largest:  # NaN fails, too
            return "its results are not those of the reference"
    return None
