"""A token at a time with the cache against all tokens at once without it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_gpt

from gptjax.inference import kv_cache
from gptjax.model import gpt

SHAPE = {"vocab_size": 300, "block_size": 24, "n_layer": 3, "n_head": 4, "n_embd": 64}
CONFIG = tiny_gpt(**SHAPE, dropout=0.1)  # dropout is never applied in inference


@functools.cache
def programs(config):
    """-> (logits of whole rows, prefill, decode), compiled."""

    def whole(params, tokens_BT):
        return gpt.logits(config, params, gpt.hidden_states(config, params, tokens_BT))

    def prefill(params, tokens_BT):
        x_BTD, cache = kv_cache.prefill(config, params, tokens_BT)
        return gpt.logits(config, params, x_BTD), cache

    return jax.jit(whole), jax.jit(prefill), jax.jit(functools.partial(kv_cache.decode, config))


@functools.cache
def setup(config):
    """-> (params large enough that attention spreads, the same by layer, tokens_BT)."""
    params = gpt.init(config, jax.random.key(0))
    params = jax.tree.map(lambda p: p * 8 if p.std() > 0 else p, params)
    tokens_BT = jax.random.randint(jax.random.key(1), (4, config.block_size), 0, config.vocab_size)
    return params, kv_cache.split_layers(config, params), np.asarray(tokens_BT, np.int32)


def decode_rows(config, lengths, padding=0):
    """Prefills the first lengths[b] tokens of each row, then decodes all others: logits_BTV.

    Rows continue at different positions: a finished one repeats its last token.
    """
    params, layers, tokens_BT = setup(config)
    _, prefill, step = programs(config)
    lengths = np.array(lengths, np.int32)
    padded = np.where(
        np.arange(max(lengths))[None] < lengths[:, None], tokens_BT[:, : max(lengths)], padding
    )
    prompt_logits_BTV, cache = prefill(params, padded)
    logits_BTV = np.full((*tokens_BT.shape, config.vocab_size), np.nan, np.float32)
    for b, length in enumerate(lengths):
        logits_BTV[b, :length] = prompt_logits_BTV[b, :length]
    for _ in range(config.block_size - min(lengths)):
        positions = np.minimum(lengths, config.block_size - 1)
        rows = np.arange(len(lengths))
        logits_BV, cache = step(params, layers, cache, tokens_BT[rows, positions], positions)
        logits_BTV[rows, positions] = logits_BV
        lengths = lengths + 1
    return logits_BTV


@pytest.mark.parametrize("changes", [{}, {"bias": False, "scan_unroll": 3}, {"n_head": 1}])
def test_cached_equals_uncached(changes):
    """Within 1e-5, and every next token the same. Not bit for bit: a matrix product with one row
    adds in another order than one with many, also inside one library.
    """
    config = tiny_gpt(**{**SHAPE, **changes})
    params, _, tokens_BT = setup(config)
    whole = np.asarray(programs(config)[0](params, tokens_BT))
    cached = decode_rows(config, [1, 5, 17, 23])
    assert 1 < np.abs(whole).max() < 20
    np.testing.assert_allclose(cached, whole, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(cached.argmax(-1), whole.argmax(-1))


def test_a_whole_prompt_is_computed_as_in_training():
    """Bit for bit: it is the same program, except for the cache."""
    params, _, tokens_BT = setup(CONFIG)
    whole, prefill, _ = programs(CONFIG)
    np.testing.assert_array_equal(prefill(params, tokens_BT)[0], whole(params, tokens_BT))


def test_the_padding_of_prompts_is_never_seen():
    """Bit for bit, for any padding token."""
    a, b = (decode_rows(CONFIG, [3, 20, 9, 14], padding) for padding in (0, 299))
    assert np.isfinite(a).all()
    np.testing.assert_array_equal(a, b)


def test_a_token_changes_its_own_row_only():
    params, layers, tokens_BT = setup(CONFIG)
    _, prefill, step = programs(CONFIG)
    _, cache = prefill(params, tokens_BT[:, :6])
    positions = np.full(4, 6, np.int32)
    tokens_B = tokens_BT[:, 6]
    changed_B = tokens_B.copy()
    changed_B[2] = (changed_B[2] + 1) % 300
    (a_BV, a_cache), (b_BV, b_cache) = (
        step(params, layers, cache, t, positions) for t in (tokens_B, changed_B)
    )
    same = np.asarray(a_BV == b_BV).all(-1)
    assert same.tolist() == [True, True, False, True]
    for a, b in zip(jax.tree.leaves(a_cache), jax.tree.leaves(b_cache), strict=True):
        changed = np.argwhere(np.asarray(a != b).any(2))  # (row and head, position)
        assert {(head // 4, position) for head, position in changed} <= {(2, 6)}


def test_bfloat16_decodes_as_it_prefills():
    """Cache and matmuls are bfloat16: 8 bits of the largest value."""
    config = dataclasses.replace(CONFIG, compute_dtype="bfloat16")
    params, layers, tokens_BT = setup(config)
    whole, prefill, _ = programs(config)
    assert {x.dtype for x in jax.tree.leaves(prefill(params, tokens_BT)[1])} == {
        jnp.dtype("bfloat16")
    }
    assert layers[0]["mlp"]["c_fc"]["kernel"].dtype == jnp.bfloat16
    assert layers[0]["ln_1"]["scale"].dtype == jnp.float32
    expected = np.asarray(whole(params, tokens_BT))
    cached = decode_rows(config, [1, 5, 17, 23])
    assert np.abs(cached - expected).max() < 2**-5 * np.abs(expected).max()
