"""The layers of a model (linear, RMSNorm, rotary positions, dropout) and the dtype they use."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from ml_collections import ConfigDict

Rope = tuple[Array, Array]  # cosines and sines (1 or B, T, 1, H / 2), float32


def compute_dtype(config: ConfigDict) -> str:
    """Returns the dtype of matmuls; `auto` is bfloat16 on a GPU (tensor cores), else float32."""
    if config.model.compute_dtype != "auto":
        return config.model.compute_dtype
    return "bfloat16" if jax.default_backend() == "gpu" else "float32"


class Linear(nnx.Module):
    """y = x W + b on the last axis; parameters in float32, arithmetic in `dtype`."""

    def __init__(
        self, d_in: int, d_out: int, *, std: float, bias: bool, dtype: str, rngs: nnx.Rngs
    ):
        self.dtype = dtype
        self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), (d_in, d_out)))
        self.bias = nnx.Param(jnp.zeros(d_out)) if bias else None

    def __call__(self, x: Array) -> Array:
        return self.split(x, ())[0]

    def split(self, x: Array, bounds: tuple[int, ...]) -> list[Array]:
        """Returns the outputs cut at `bounds` of the last axis.

        Of weights and outputs the smaller is cut, for cutting copies: in training the weights, in
        decoding the outputs.
        """
        kernel = self.kernel[...].astype(self.dtype)
        # One contracted and one free axis: XLA's CPU weight gradient is slow over two free axes.
        x_MD = x.reshape(-1, x.shape[-1])
        if x_MD.shape[0] < x_MD.shape[1]:
            ys = jnp.split(x_MD @ kernel, bounds, axis=1)
        else:
            ys = [x_MD @ part for part in jnp.split(kernel, bounds, axis=1)]
        if self.bias is not None:
            biases = jnp.split(self.bias[...].astype(self.dtype), bounds)
            ys = [y + bias[None, :] for y, bias in zip(ys, biases, strict=True)]
        return [y.reshape(*x.shape[:-1], -1) for y in ys]


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + eps) times a learned scale (Zhang and Sennrich 2019), in float32.

    The result has the dtype of `x`.
    """

    def __init__(self, width: int, eps: float):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(width))

    def __call__(self, x: Array) -> Array:
        scale = self.scale[...].reshape((1,) * (x.ndim - 1) + (-1,))
        x_float32 = x.astype(jnp.float32)
        mean_square = jnp.mean(x_float32 * x_float32, axis=-1, keepdims=True)
        return (x_float32 * jax.lax.rsqrt(mean_square + self.eps) * scale).astype(x.dtype)


def rope_table(
    positions_BT: Array, width: int, theta: float, scaling: tuple[float, ...] = ()
) -> Rope:
    """Returns cosines and sines of position / theta^(2 i / width), the angle of pair i of a head.

    With `scaling`, of that over `rope_divisors`. Float32 throughout: bfloat16 cannot tell positions
    above 256 apart.
    """
    frequencies = theta ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    if scaling:
        frequencies = frequencies / jnp.asarray(rope_divisors(width, theta, scaling))
    angles = positions_BT.astype(jnp.float32)[:, :, None, None] * frequencies[None, None, None, :]
    return jnp.cos(angles), jnp.sin(angles)


def rope_divisors(width: int, theta: float, scaling: tuple[float, ...]) -> np.ndarray:
    """Returns by what each pair's frequency is divided: float32 [width / 2].

    `scaling` is (factor,) for all (Chen et al. 2023), or (factor, low, high, window) as in Llama
    3.1: a pair that turns less than `low` times in the old window is slowed down by the factor, one
    that turns more than `high` times is not, and between them the frequencies are interpolated.
    """
    factor = scaling[0]
    if len(scaling) == 1:
        return np.full(width // 2, factor, np.float32)
    _, low, high, window = scaling
    turns = window * theta ** (-np.arange(0, width, 2) / width) / (2 * np.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)  # share of the frequency that stays
    return np.asarray(1 / (kept + (1 - kept) / factor), np.float32)


def apply_rope(x_BTNH: Array, rope: Rope) -> Array:
    """Rotates each pair (i, i + H / 2) of every head by its angle (Su et al. 2021), in float32.

    Products of queries and keys then depend on the distance of their positions only. The pairs are
    those of Llama and Qwen3 in Hugging Face's form. The result has the dtype of `x_BTNH`.
    """
    cos, sin = rope
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    rotated = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(rotated, axis=-1).astype(x_BTNH.dtype)


def dropout(x_BTD: Array, rate: float, keys_B: Array | None) -> Array:
    """Zeroes a share `rate` of `x_BTD` and scales the rest up; without keys, returns `x_BTD`.

    Each row has a PRNG key, so that its mask does not depend on the rows beside it.
    """
    if keys_B is None or rate == 0:
        return x_BTD
    keep_BTD = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x_BTD.shape[1:]))(keys_B)
    return jnp.where(keep_BTD, x_BTD / (1 - rate), 0).astype(x_BTD.dtype)
