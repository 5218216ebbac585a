"""Tokens that continue prompts: drawn on the device, many at a time, with a key-value cache."""

import dataclasses
import functools
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gptjax.inference import kv_cache
from gptjax.model import gpt
from gptjax.model.config import GPTConfig

_MAX_CHUNK = 32  # tokens that the device draws before the host hears of them
_CHUNK_SECONDS = 0.05  # about how long it may take, so that text streams
_MIN_PREFILL = 32  # tokens; prompts are padded to this or twice, four times, ... as many


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn."""

    max_new_tokens: int
    temperature: float  # divides the logits; 0 takes the most likely token
    top_k: int  # only the k most likely tokens can be drawn; 0: all
    top_p: float  # of those, only the smallest set whose probability reaches it


class Drawn(NamedTuple):
    """K tokens of each row, one after the other, and how likely the model held them.

    Log-probabilities are the model's own (natural, float32), before temperature, top-k and top-p.
    """

    ids: Any  # (B, K) int32
    logprobs: Any  # (B, K)
    top_ids: Any  # (B, K, C): the C most likely tokens; C = 0 where none were asked for
    top_logprobs: Any  # (B, K, C)


def choose(logits_V: Array, key: Array, *, temperature: Array, top_k: int, top_p: Array) -> Array:
    """Draws a token id (int32 scalar).

    Args:
        logits_V: float32.
        key: PRNG key.
        temperature: divides the logits; 0 takes the most likely token.
        top_k: only the k most likely tokens can be drawn; 0 for all.
        top_p: of those, only the smallest set whose probability reaches it (Holtzman et al. 2020).
    """
    k = min(top_k, logits_V.size) if top_k else logits_V.size
    scaled_V = logits_V / jnp.maximum(temperature, 1e-6)

    def of_all() -> Array:
        return jax.random.categorical(key, scaled_V)

    def of_the_most_likely() -> Array:
        sorted_K, ids_K = jax.lax.top_k(scaled_V, k)
        probabilities_K = jax.nn.softmax(sorted_K)
        before_K = jnp.cumsum(probabilities_K) - probabilities_K  # of more likely tokens
        kept_K = jnp.where(before_K < top_p, jnp.log(probabilities_K), -jnp.inf)
        return ids_K[jax.random.categorical(key, kept_K)]

    if k < logits_V.size:
        drawn = of_the_most_likely()
    else:  # sorting the whole vocabulary takes longer than a small model does
        drawn = jax.lax.cond(top_p < 1, of_the_most_likely, of_all)
    return jnp.where(temperature > 0, drawn, jnp.argmax(logits_V)).astype(jnp.int32)


class _Draw(NamedTuple):
    """What drawing depends on; the fields of `Sampling` that are not compiled in, and keys."""

    keys_B: Array
    temperature: Array
    top_p: Array

    def __call__(self, logits_BV: Array, number: Array, *, top_k: int, n_top: int) -> Drawn:
        """Draws token `number` of each row; the result has no axis K."""
        one = functools.partial(choose, temperature=self.temperature, top_k=top_k, top_p=self.top_p)
        keys_B = jax.vmap(jax.random.fold_in, (0, None))(self.keys_B, number)
        ids_B = jax.vmap(one)(logits_BV, keys_B)
        logprobs_BV = jax.nn.log_softmax(logits_BV)
        logprobs_B = jnp.take_along_axis(logprobs_BV, ids_B[:, None], axis=1)[:, 0]
        top_logprobs_BC, top_ids_BC = jax.lax.top_k(logprobs_BV, n_top)
        return Drawn(ids_B, logprobs_B, top_ids_BC, top_logprobs_BC)


_STATIC = ("model_config", "top_k", "n_top")


@functools.partial(jax.jit, static_argnames=_STATIC)
def _prefill(
    params: Any,
    tokens_BP: Array,
    lengths_B: Array,
    number: Array,
    draw: _Draw,
    *,
    model_config: GPTConfig,
    top_k: int,
    n_top: int,
) -> tuple[Drawn, kv_cache.Cache]:
    """Runs the prompts and draws the token behind each: K = 1."""
    x_BPD, cache = kv_cache.prefill(model_config, params, tokens_BP)
    x_BD = jnp.take_along_axis(x_BPD, lengths_B[:, None, None] - 1, axis=1)[:, 0]
    drawn = draw(gpt.logits(model_config, params, x_BD), number, top_k=top_k, n_top=n_top)
    return jax.tree.map(lambda x: x[:, None], drawn), cache


@functools.partial(jax.jit, static_argnames=_STATIC, donate_argnames="cache")
def _decode(
    params: Any,
    layers: Any,
    cache: kv_cache.Cache,
    tokens_B: Array,
    positions_B: Array,
    number: Array,
    n: Array,
    draw: _Draw,
    *,
    model_config: GPTConfig,
    top_k: int,
    n_top: int,
) -> tuple[Drawn, kv_cache.Cache]:
    """Runs `tokens_B` and draws the token behind each, and so on, n times.

    Of the result's K = _MAX_CHUNK places, n are filled.
    """

    def one(i: Array, carry: Any) -> Any:
        chunk, cache, tokens_B = carry
        logits_BV, cache = kv_cache.decode(
            model_config, params, layers, cache, tokens_B, positions_B + i
        )
        drawn = draw(logits_BV, number + i, top_k=top_k, n_top=n_top)
        chunk = jax.tree.map(lambda all_BK, x_B: all_BK.at[:, i].set(x_B), chunk, drawn)
        return chunk, cache, drawn.ids

    batch = len(tokens_B)
    ids, floats = jnp.int32, jnp.float32
    chunk = Drawn(
        jnp.zeros((batch, _MAX_CHUNK), ids),
        jnp.zeros((batch, _MAX_CHUNK), floats),
        jnp.zeros((batch, _MAX_CHUNK, n_top), ids),
        jnp.zeros((batch, _MAX_CHUNK, n_top), floats),
    )
    chunk, cache, _ = jax.lax.fori_loop(0, n, one, (chunk, cache, tokens_B))
    return chunk, cache


class Sampler:
    """A model made ready to generate; holds its parameters a second time, layer by layer."""

    def __init__(self, model_config: GPTConfig, params: Any):
        self.model_config = model_config
        self.params = params
        self._layers = jax.jit(kv_cache.split_layers, static_argnums=0)(model_config, params)

    def draw(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        seeds: Sequence[int],
        n_top: int = 0,
    ) -> Iterator[Drawn]:
        """Yields the tokens that continue each prompt, some at a time, as NumPy arrays.

        Of a text that grows beyond block_size T, the model sees the last T tokens at first, and
        then, each time T are full, goes on from the last T // 2: what a token gives to the cache
        depends on all before it, so the window must be computed anew whenever its start moves.

        Up to rounding, a row's tokens depend on its prompt and seed, not on the rows beside it.

        Args:
            prompts: for each row at least one token id.
            sampling: how to draw; as many tokens for every row.
            seeds: for each row; the same seed draws the same tokens.
            n_top: how many most likely tokens are reported for each place.
        """
        if not prompts or sampling.max_new_tokens == 0:
            return
        block_size = self.model_config.block_size
        windows = [list(prompt[-block_size:]) for prompt in prompts]
        keys = jax.vmap(jax.random.key)(np.array([seed % 2**32 for seed in seeds], np.uint32))
        draw = _Draw(keys, jnp.float32(sampling.temperature), jnp.float32(sampling.top_p))
        static = {"model_config": self.model_config, "top_k": sampling.top_k, "n_top": n_top}
        number, n_cached, chunk = 0, block_size, 1
        cache: kv_cache.Cache = []
        while number < sampling.max_new_tokens:
            start = time.monotonic()
            if n_cached == block_size:  # at first, and when the longest window is full
                lengths = np.array([len(window) for window in windows], np.int32)
                tokens_BP = np.zeros((len(windows), self._padded(lengths.max())), np.int32)
                for row, window in zip(tokens_BP, windows, strict=True):
                    row[: len(window)] = window
                n, n_cached = 1, int(lengths.max())
                drawn, cache = _prefill(self.params, tokens_BP, lengths, number, draw, **static)
            else:
                n = min(chunk, block_size - n_cached, sampling.max_new_tokens - number)
                last = np.array([window[-1] for window in windows], np.int32)
                positions = np.array([len(window) - 1 for window in windows], np.int32)
                drawn, cache = _decode(
                    self.params, self._layers, cache, last, positions, number, n, draw, **static
                )
                n_cached += n
            drawn = Drawn(*(x[:, :n] for x in jax.device_get(drawn)))
            chunk = min(2 * chunk, _MAX_CHUNK) if _fast(start) else max(chunk // 2, 1)
            yield drawn
            number += n
            for window, ids in zip(windows, drawn.ids.tolist(), strict=True):
                window += ids
                if len(window) > block_size:
                    del window[: -max(block_size // 2, 1)]

    def _padded(self, length: int) -> int:
        padded = _MIN_PREFILL
        while padded < length:
            padded *= 2
        return min(padded, self.model_config.block_size)


def _fast(start: float) -> bool:
    return time.monotonic() - start < _CHUNK_SECONDS
