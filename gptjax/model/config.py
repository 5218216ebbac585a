"""Shape and arithmetic of a model."""

import dataclasses
import math

from ml_collections import ConfigDict

from gptjax.model import attention
from gptjax.model.layers import compute_dtype

INIT_STD = 0.02  # GPT-2 (Radford et al. 2019)
_NORM_EPS = {"layernorm": 1e-5, "rmsnorm": 1e-6}  # GPT-2's, Qwen3's


@dataclasses.dataclass(frozen=True)
class GPTConfig:
    """Shape and arithmetic of a model; hashable, so that compiled functions can be cached by it.

    Fields are keys of `model` in configs/base.py, with every `auto` and 0 resolved.
    """

    vocab_size: int  # V
    block_size: int  # T, at most
    n_layer: int  # L
    n_head: int  # N
    n_kv_head: int  # K; divides N
    n_embd: int  # D
    mlp_dim: int  # F
    dropout: float
    bias: bool
    compute_dtype: str
    remat: str
    scan_unroll: int
    attention: str  # see gptjax/model/attention.py
    norm: str
    norm_eps: float
    position: str
    rope_theta: float
    rope_scaling: tuple[float, ...]
    qk_norm: bool
    mlp: str
    tie_embeddings: bool
    zero_init: bool

    @classmethod
    def from_config(cls, config: ConfigDict, vocab_size: int) -> "GPTConfig":
        """Returns the model of `config.model`, for a tokenizer of `vocab_size` pieces.

        `attention` = auto becomes what runs on this machine; a named one is kept, runnable or not.
        """
        values = {f.name: config.model[f.name] for f in dataclasses.fields(cls)[1:]}
        values["compute_dtype"] = compute_dtype(config)
        values["norm_eps"] = config.model.norm_eps or _NORM_EPS[config.model.norm]
        values["rope_scaling"] = tuple(map(float, config.model.rope_scaling))
        values["n_kv_head"] = config.model.n_kv_head or config.model.n_head
        values["mlp_dim"] = config.model.mlp_dim or _default_mlp_dim(config.model)
        if values["attention"] == "auto":
            values["attention"], _ = attention.choose(config)
        return cls(vocab_size=vocab_size, **values)

    @property
    def head_dim(self) -> int:
        """H, the width of a head."""
        return self.n_embd // self.n_head

    @property
    def residual_std(self) -> float:
        """Standard deviation of the initial projections into the residual stream."""
        return 0.0 if self.zero_init else INIT_STD / (2 * self.n_layer) ** 0.5


def _default_mlp_dim(model: ConfigDict) -> int:
    """4 D; for SwiGLU, which has a third matrix, 8/3 D (Shazeer 2020) rounded up to 64s."""
    if model.mlp == "swiglu":
        return 64 * math.ceil(8 * model.n_embd / (3 * 64))
    return 4 * model.n_embd
