"""Tokens that continue prompts: drawn on the device, many at a time, with a key-value cache."""

import dataclasses
import functools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gptjax.inference import kv_cache
from gptjax.inference.scoring import ScoredTokens, padded, padded_lengths, score_tokens
from gptjax.model import GPTConfig, gpt

_MAX_CHUNK = 32  # tokens that the device draws between two reads by the host
_CHUNK_SECONDS = 0.05  # target for the time between them, so that text streams


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn."""

    max_new_tokens: int
    temperature: float  # divides the logits; 0 takes the most likely token
    top_k: int  # draws from the k most likely tokens only; 0: all
    top_p: float  # of those, only the smallest set that has it (Holtzman et al. 2020)


def sample_token(
    logits_V: Array, key: Array, *, temperature: Array, top_k: int, top_p: Array
) -> Array:
    """Draws a token id (int32 scalar) from float32 logits; the rest as in `Sampling`."""
    k = min(top_k, logits_V.size) if top_k else logits_V.size
    scaled_V = logits_V / jnp.maximum(temperature, 1e-6)

    def draw_from_all() -> Array:
        return jax.random.categorical(key, scaled_V)

    def draw_from_top() -> Array:
        sorted_J, ids_J = jax.lax.top_k(scaled_V, k)
        probabilities_J = jax.nn.softmax(sorted_J)
        before_J = jnp.cumsum(probabilities_J) - probabilities_J  # of more likely tokens
        kept_J = jnp.where(before_J < top_p, jnp.log(probabilities_J), -jnp.inf)
        return ids_J[jax.random.categorical(key, kept_J)]

    if k < logits_V.size:
        drawn = draw_from_top()
    else:  # sorting the whole vocabulary takes longer than a small model does
        drawn = jax.lax.cond(top_p < 1, draw_from_top, draw_from_all)
    return jnp.where(temperature > 0, drawn, jnp.argmax(logits_V)).astype(jnp.int32)


@flax.struct.dataclass
class _Draw:
    """How to draw: an argument of the compiled programs, whose static fields choose one of them."""

    keys_B: Array  # a PRNG key for each row
    temperature: Array
    top_p: Array
    top_k: int = flax.struct.field(pytree_node=False)
    n_top: int = flax.struct.field(pytree_node=False)  # J

    def __call__(self, logits_BV: Array, number: Array) -> ScoredTokens:
        """Draws token `number` of each row; the result has no axis T."""
        one = functools.partial(
            sample_token, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p
        )
        keys_B = jax.vmap(jax.random.fold_in, (0, None))(self.keys_B, number)
        return score_tokens(logits_BV, jax.vmap(one)(logits_BV, keys_B), self.n_top)


@functools.partial(jax.jit, static_argnames="model_config")
def _prefill(
    model_config: GPTConfig, params: Any, tokens_1T: Array, length: Array
) -> tuple[Array, kv_cache.Cache]:
    """Runs one prompt of `length` tokens; returns (x_D after its last token, its cache)."""
    x_1TD, cache = kv_cache.prefill(model_config, params, tokens_1T)
    return x_1TD[0, length - 1], cache


@functools.partial(jax.jit, static_argnames="model_config")
def _begin(
    model_config: GPTConfig,
    params: Any,
    prefilled_B: Sequence[tuple[Array, kv_cache.Cache]],
    number: Array,
    draw: _Draw,
) -> tuple[ScoredTokens, kv_cache.Cache]:
    """Makes one batch of prompts, and draws the token after each: T = 1."""
    xs_D, caches = zip(*prefilled_B, strict=True)
    cache = jax.tree.map(lambda *heads_KSH: jnp.concatenate(heads_KSH), *caches)
    drawn = draw(gpt.logits(model_config, params, jnp.stack(xs_D)), number)
    return jax.tree.map(lambda x: x[:, None], drawn), cache


@functools.partial(jax.jit, static_argnames="model_config", donate_argnames="cache")
def _decode(
    model_config: GPTConfig,
    params: Any,
    layers: Any,
    cache: kv_cache.Cache,
    tokens_B: Array,
    positions_B: Array,
    number: Array,
    n: Array,
    draw: _Draw,
) -> tuple[ScoredTokens, kv_cache.Cache]:
    """Draws n times, each time from the tokens drawn before, at first `tokens_B`.

    Of the result's T = _MAX_CHUNK positions, the first n are filled.
    """

    def one(i: Array, carry: Any) -> Any:
        chunk, cache, tokens_B = carry
        logits_BV, cache = kv_cache.decode(
            model_config, params, layers, cache, tokens_B, positions_B + i
        )
        drawn = draw(logits_BV, number + i)
        chunk = jax.tree.map(lambda all_BT, x_B: all_BT.at[:, i].set(x_B), chunk, drawn)
        return chunk, cache, drawn.ids

    shape, top_shape = (len(tokens_B), _MAX_CHUNK), (len(tokens_B), _MAX_CHUNK, draw.n_top)
    chunk = ScoredTokens(
        jnp.zeros(shape, jnp.int32),
        jnp.zeros(shape, jnp.float32),
        jnp.zeros(top_shape, jnp.int32),
        jnp.zeros(top_shape, jnp.float32),
    )
    chunk, cache, _ = jax.lax.fori_loop(0, n, one, (chunk, cache, tokens_B))
    return chunk, cache


class Sampler:
    """A model ready to generate; holds its parameters a second time, layer by layer."""

    def __init__(self, model_config: GPTConfig, params: Any):
        self.model_config = model_config
        self.params = params
        self._layers = jax.jit(kv_cache.split_layers, static_argnums=0)(model_config, params)
        self._lengths = padded_lengths(model_config.block_size, 2)

    def warm_up(self, max_rows: int, n_top: int) -> None:
        """Compiles what `draw` needs for at most `max_rows` prompts, for n_top and no top_k."""
        shapes = [(1, length) for length in self._lengths]
        shapes += [(n, 1) for n in sorted({_padded(n) for n in range(1, max_rows + 1)})]
        sampling = Sampling(max_new_tokens=2, temperature=1.0, top_k=0, top_p=1.0)
        for n_rows, length in shapes:
            for _ in self.draw([[0] * length] * n_rows, sampling, seeds=[0] * n_rows, n_top=n_top):
                pass

    def draw(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        seeds: Sequence[int],
        n_top: int = 0,
    ) -> Iterator[ScoredTokens]:
        """Yields the tokens that continue each prompt, some at a time, as NumPy arrays.

        The model sees a window of the last block_size tokens at first; each time the window is
        full, its later half starts a new one. (Cache entries depend on all tokens before, so moving
        the window's start means computing it again.) Up to rounding, a row's tokens depend on its
        prompt (at least one token id) and its seed, not on the other rows. `n_top` is J, how many
        most likely tokens are reported for each position.
        """
        if not prompts or sampling.max_new_tokens == 0:
            return
        block_size, n_rows = self.model_config.block_size, len(prompts)
        # Copies of the first row make up a number for which programs are compiled.
        rows = [*range(n_rows), *[0] * (_padded(n_rows) - n_rows)]
        windows = [list(prompts[row][-block_size:]) for row in rows]
        keys = jax.vmap(jax.random.key)(np.array([seeds[row] % 2**32 for row in rows], np.uint32))
        temperature, top_p = jnp.float32(sampling.temperature), jnp.float32(sampling.top_p)
        draw = _Draw(keys, temperature, top_p, sampling.top_k, n_top)
        number, n_cached, chunk = 0, block_size, 1
        cache: kv_cache.Cache = []
        while number < sampling.max_new_tokens:
            start = time.monotonic()
            if n_cached == block_size:  # at first, and whenever the longest window is full
                n, n_cached = 1, max(map(len, windows))
                drawn, cache = self._begin(windows, number, draw)
            else:
                n = min(chunk, block_size - n_cached, sampling.max_new_tokens - number)
                last = np.array([window[-1] for window in windows], np.int32)
                positions = np.array([len(window) - 1 for window in windows], np.int32)
                weights = self.model_config, self.params, self._layers
                drawn, cache = _decode(*weights, cache, last, positions, number, n, draw)
                n_cached += n
            drawn = ScoredTokens(*(x[:, :n] for x in jax.device_get(drawn)))
            fast = time.monotonic() - start < _CHUNK_SECONDS
            chunk = min(2 * chunk, _MAX_CHUNK) if fast else max(chunk // 2, 1)
            yield ScoredTokens(*(x[:n_rows] for x in drawn))
            number += n
            for window, ids in zip(windows, drawn.ids.tolist(), strict=True):
                window += ids
                if len(window) > block_size:
                    del window[: -max(block_size // 2, 1)]

    def _begin(
        self, windows: Sequence[Sequence[int]], number: int, draw: _Draw
    ) -> tuple[ScoredTokens, kv_cache.Cache]:
        """Runs each different window once, padded by itself, and draws the token after each."""
        prefilled = {}
        for window in set(map(tuple, windows)):
            length = next(length for length in self._lengths if length >= len(window))
            tokens_1T = padded([window], length)
            prefilled[window] = _prefill(self.model_config, self.params, tokens_1T, len(window))
        prefilled_B = [prefilled[tuple(window)] for window in windows]
        return _begin(self.model_config, self.params, prefilled_B, number, draw)


def _padded(n_rows: int) -> int:
    """Returns the number of rows that are computed."""
    return 1 << (n_rows - 1).bit_length()
