"""How ids of tokens are stored: in 16 bits where the vocabulary allows it, else in 32."""

import numpy as np


def token_dtype(vocab_size: int) -> np.dtype:
    """Returns the little-endian type of an id, in encoded text and in the files of a store."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")
