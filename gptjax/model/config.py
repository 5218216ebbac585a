"""Shape and arithmetic of a model."""

import dataclasses
import math

from ml_collections import ConfigDict

from gptjax.model import attention as attention_lib
from gptjax.model.precision import compute_dtype

INIT_STD = 0.02  # GPT-2 (Radford et al. 2019)


@dataclasses.dataclass(frozen=True)
class GPTConfig:
    """Shape and arithmetic of a model; hashable, so that compiled functions can be cached by it.

    Fields are keys of `model` in configs/base.py, which says what they mean.
    """

    vocab_size: int  # V
    block_size: int  # T, at most
    n_layer: int  # L
    n_head: int  # N
    n_embd: int  # D
    dropout: float
    bias: bool
    compute_dtype: str
    remat: str
    scan_unroll: int
    attention: str  # see gptjax/model/attention.py; never `auto`
    norm: str
    position: str
    rope_theta: float
    qk_norm: bool
    mlp: str
    mlp_dim: int  # F; 0: see `mlp_width`
    n_kv_head: int  # K; 0: see `kv_heads`
    tie_embeddings: bool
    zero_init: bool

    @classmethod
    def from_config(cls, config: ConfigDict, vocab_size: int) -> "GPTConfig":
        """Returns the shape in `config.model`, for a tokenizer of `vocab_size` pieces.

        `auto` becomes what this machine runs; what is named is kept, also where it cannot run here.
        """
        keys = {field.name for field in dataclasses.fields(cls)} & set(config.model)
        values = {key: config.model[key] for key in keys}
        values |= {"vocab_size": vocab_size, "compute_dtype": compute_dtype(config)}
        if values["attention"] == "auto":
            values["attention"], _ = attention_lib.choose(config)
        return cls(**values)

    @property
    def head_dim(self) -> int:
        """H, the width of one attention head."""
        return self.n_embd // self.n_head

    @property
    def kv_heads(self) -> int:
        """K, the heads of keys and values, each for N / K heads of queries."""
        return self.n_kv_head or self.n_head

    @property
    def mlp_width(self) -> int:
        """F, by default 4 D; for SwiGLU, which has a third matrix, 8/3 D in whole multiples of 64.

        (Shazeer 2020: the same number of parameters.)
        """
        if self.mlp_dim:
            return self.mlp_dim
        if self.mlp == "swiglu":
            return 64 * math.ceil(8 * self.n_embd / (3 * 64))
        return 4 * self.n_embd

    @property
    def residual_std(self) -> float:
        """Standard deviation of what is drawn for the projections into the residual stream."""
        return 0.0 if self.zero_init else INIT_STD / (2 * self.n_layer) ** 0.5
