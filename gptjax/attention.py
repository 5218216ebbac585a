"""Causal self-attention, optionally confined to documents."""

import jax
from jax import Array


def attention(
    q_BTNH: Array, k_BTNH: Array, v_BTNH: Array, segment_ids_BT: Array | None = None
) -> Array:
    """Softmax(q k^T / sqrt(H)) v over earlier positions; the softmax is float32.

    Args:
        q_BTNH: queries; k_BTNH and v_BTNH have the same shape.
        k_BTNH: keys.
        v_BTNH: values.
        segment_ids_BT: document numbers; given, a query sees keys of its own document only.

    Returns:
        The mixed values, of q's shape and dtype.
    """
    mask_B1TT = None
    if segment_ids_BT is not None:
        mask_B1TT = (segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :])[:, None]
    return jax.nn.dot_product_attention(
        q_BTNH, k_BTNH, v_BTNH, mask=mask_B1TT, is_causal=True, implementation="xla"
    )
