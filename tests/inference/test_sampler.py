"""Draws against NumPy, and tokens against a loop without cache, batch or padding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_gpt

from gptjax.inference import sampler
from gptjax.inference.sampler import Sampler, Sampling, sample_token
from gptjax.model import gpt
from gptjax.model.config import GPTConfig

GREEDY = {"temperature": 0.0, "top_k": 0, "top_p": 1.0}


def gpt_config(**changes) -> GPTConfig:
    return tiny_gpt(**{"block_size": 8, **changes})


def scaled_params(config, scale=25.0):
    """Initial weights are so small that a model repeats its last token: these attend further."""
    params = gpt.init(config, jax.random.key(0))
    return jax.tree.map(lambda p: p * scale if p.std() > 0 else p, params)


@pytest.fixture(scope="module")
def tiny_sampler():
    config = gpt_config()
    return Sampler(config, scaled_params(config))


def tokens_of(tiny_sampler, prompts, *, seeds=None, n_top=0, **sampling):
    """The ids of all drawn tokens, one list a row."""
    seeds = seeds or [0] * len(prompts)
    chunks = list(
        tiny_sampler.draw(prompts, Sampling(**{**GREEDY, **sampling}), seeds=seeds, n_top=n_top)
    )
    return [sum((chunk.ids[i].tolist() for chunk in chunks), []) for i in range(len(prompts))]


# --- sample_token ---


def allowed(logits, temperature, top_k, top_p):
    """Probabilities in float64: scale, keep k, keep the smallest set that reaches top_p."""
    scaled = np.asarray(logits, np.float64) / temperature
    p = np.exp(scaled - scaled.max())
    order = sorted(range(len(p)), key=lambda i: -p[i])
    if top_k:
        p[order[top_k:]] = 0
    p /= p.sum()
    total = 0.0
    for i in order:
        if total >= top_p:
            p[i] = 0
        total += p[i]
    return p / p.sum()


def draws(logits, n, *, temperature, top_k, top_p):
    def one(key):
        return sample_token(
            logits, key, temperature=jnp.float32(temperature), top_k=top_k, top_p=jnp.float32(top_p)
        )

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(11), n)))


@pytest.mark.parametrize("top_k", [0, 1, 5, 1000])
@pytest.mark.parametrize("top_p", [1e-6, 0.5, 1.0])
def test_temperature_0_is_greedy(top_k, top_p):
    for seed in range(3):
        logits = jax.random.normal(jax.random.key(seed), (40,))
        ids = draws(logits, 20, temperature=0, top_k=top_k, top_p=top_p)
        assert ids.dtype == np.int32
        assert set(ids.tolist()) == {int(np.argmax(logits))}


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [
        (1.0, 0, 1.0),
        (0.5, 0, 1.0),
        (2.0, 0, 1.0),
        (1.0, 4, 1.0),
        (1.0, 12, 1.0),  # all tokens
        (1.0, 100, 1.0),  # more than all tokens
        (1.0, 0, 0.7),
        (1.0, 0, 0.01),  # less than the most likely has: it alone
        (0.8, 6, 0.9),
    ],
)
def test_draws_have_the_right_support_and_distribution(temperature, top_k, top_p):
    logits = jax.random.permutation(jax.random.key(5), jnp.linspace(-1.5, 1.5, 12))
    n = 40_000
    p = allowed(logits, temperature, top_k, top_p)
    counts = np.bincount(
        draws(logits, n, temperature=temperature, top_k=top_k, top_p=top_p), minlength=12
    )
    assert counts.sum() == n
    assert n * p[p > 0].min() > 30, "too rare to be sure to be drawn"
    np.testing.assert_array_equal(counts > 0, p > 0)
    kept = p > 0
    chi_square = np.sum((counts[kept] - n * p[kept]) ** 2 / (n * p[kept]))
    freedom = kept.sum() - 1  # mean of chi^2; its variance is twice that
    assert chi_square <= freedom + 5 * np.sqrt(2 * freedom)


def test_top_p_counts_after_top_k():
    """Of three equal tokens, top_k = 2 leaves two of 1/2 each, so top_p = 0.4 leaves one."""
    logits = jnp.log(jnp.array([1 / 3, 1 / 3 + 1e-3, 1 / 3 - 1e-3]))
    assert set(draws(logits, 200, temperature=1, top_k=2, top_p=0.4).tolist()) == {1}
    assert set(draws(logits, 200, temperature=1, top_k=0, top_p=0.4).tolist()) == {0, 1}


# --- Sampler ---


@functools.partial(jax.jit, static_argnums=0)
def last_logits(config, params, tokens_1T):
    return gpt.logits(config, params, gpt.hidden_states(config, params, tokens_1T))[0, -1]


compiled_sample_token = jax.jit(sample_token, static_argnames="top_k")


def naive_tokens(tiny_sampler, prompt, n, *, seed=0, temperature=0.0, top_k=0, top_p=1.0):
    """One row by itself, the whole window through the model for each token, nothing padded."""
    size = tiny_sampler.model_config.block_size
    window, ids = list(prompt[-size:]), []
    for i in range(n):
        logits_V = last_logits(
            tiny_sampler.model_config, tiny_sampler.params, np.array([window], np.int32)
        )
        key = jax.random.fold_in(jax.random.key(seed), i)
        token = compiled_sample_token(
            logits_V,
            key,
            temperature=jnp.float32(temperature),
            top_k=top_k,
            top_p=jnp.float32(top_p),
        )
        ids.append(int(token))
        window.append(ids[-1])
        if len(window) > size:  # a full window continues from its later half
            window = window[len(window) - size // 2 :]
    return ids


def random_prompts(lengths, vocab_size=50):
    rng = np.random.default_rng(lengths)
    return [rng.integers(0, vocab_size, length).tolist() for length in lengths]


@pytest.mark.parametrize("length", [1, 3, 8, 9, 20])
def test_greedy_tokens_equal_a_naive_loop(tiny_sampler, length):
    """12 tokens in a window of 8: it fills and moves; prompts of 9 and 20 start beyond it."""
    (prompt,) = random_prompts([length])
    (ids,) = tokens_of(tiny_sampler, [prompt], max_new_tokens=12)
    assert ids == naive_tokens(tiny_sampler, prompt, 12)
    assert len(set(ids)) > 3  # not one repeated token, which any bug could give


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"temperature": 0.8, "top_k": 7},
        {"temperature": 1.2, "top_p": 0.8},
    ],
)
def test_a_batch_draws_what_each_row_would_alone_without_a_cache(tiny_sampler, sampling):
    """24 prompts of 1 to 12 tokens: 480 draws, all the same as in the naive loop."""
    prompts = random_prompts([1 + i % 12 for i in range(24)])
    seeds = list(range(100, 124))
    drawn = tokens_of(tiny_sampler, prompts, seeds=seeds, max_new_tokens=20, **sampling)
    expected = [
        naive_tokens(tiny_sampler, prompt, 20, seed=seed, **sampling)
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    assert drawn == expected
    assert len({tuple(ids) for ids in drawn}) > 20


def test_of_a_long_text_only_the_window_matters(tiny_sampler):
    window, short, long = random_prompts([8, 5, 30])
    texts = tokens_of(tiny_sampler, [window, [*short, *window], [*long, *window]], max_new_tokens=6)
    assert texts[0] == texts[1] == texts[2]
    changed = [(window[0] + 1) % 50, *window[1:]]  # the window's oldest token is seen
    a_V, b_V = (
        last_logits(tiny_sampler.model_config, tiny_sampler.params, np.array([w], np.int32))
        for w in (window, changed)
    )
    assert np.abs(a_V - b_V).max() > 1e-3


def test_the_seed_decides_the_tokens(tiny_sampler):
    def text(seed):
        return tokens_of(tiny_sampler, [[1]], seeds=[seed], temperature=1.5, max_new_tokens=20)[0]

    assert text(0) == text(0)
    assert len({tuple(text(seed)) for seed in (0, 1, 2, 2**40 + 3)}) == 4
    assert text(2**32 + 5) == text(5)  # keys have 32 bits


def test_each_token_has_its_own_draw(tiny_sampler):
    """A model to which all tokens are alike would repeat one, if all draws had the same key."""
    uniform = Sampler(
        tiny_sampler.model_config,
        tiny_sampler.params | {"wte": jnp.zeros_like(tiny_sampler.params["wte"])},
    )
    # Of 50 tokens, 50 draws meet 50 (1 - (1 - 1 / 50)^50) = 32 different ones, give or take 2.2.
    (ids,) = tokens_of(uniform, [[1]], temperature=1.0, max_new_tokens=50)
    assert 21 < len(set(ids)) < 43


def test_log_probabilities_are_the_models_own(tiny_sampler):
    """For any temperature and top-k; in a window that moves, too."""
    sampling = Sampling(max_new_tokens=14, temperature=2.0, top_k=9, top_p=0.9)
    prompt = [3, 1, 4]
    chunks = list(tiny_sampler.draw([prompt], sampling, seeds=[0], n_top=3))
    ids, logprobs, top_ids, top_logprobs = (
        np.concatenate(field, axis=1)[0] for field in zip(*chunks, strict=True)
    )
    assert [a.shape for a in (ids, logprobs, top_ids)] == [(14,), (14,), (14, 3)]
    window = list(prompt)
    for i in range(14):
        logits_V = last_logits(
            tiny_sampler.model_config, tiny_sampler.params, np.array([window], np.int32)
        )
        logits = np.asarray(logits_V, np.float64)
        expected = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
        np.testing.assert_allclose(logprobs[i], expected[ids[i]], atol=1e-5)
        best = np.argsort(-expected)[:3]
        assert top_ids[i].tolist() == best.tolist()
        np.testing.assert_allclose(top_logprobs[i], expected[best], atol=1e-5)
        window.append(int(ids[i]))
        if len(window) > 8:
            window = window[-4:]


PROGRAMS = (sampler._prefill, sampler._begin, sampler._decode)


def n_compiled():
    return [program._cache_size() for program in PROGRAMS]


def test_few_programs_are_compiled_and_all_of_them_by_warm_up():
    """One prefill a padded length: 7, 25 and the whole block of 100; two more for 1, 2, 4 rows."""
    config = gpt_config(block_size=100, n_layer=1)
    tiny_sampler = Sampler(config, scaled_params(config))
    before = n_compiled()
    tiny_sampler.warm_up(max_rows=4, n_top=2)
    after = n_compiled()
    assert [b - a for a, b in zip(before, after, strict=True)] == [3, 3, 3]
    for i, length in enumerate([1, 2, 7, 8, 25, 26, 64, 99, 100, 250]):
        prompts = random_prompts([length, 1, length + 1, 9][: 1 + i % 4])
        for temperature in (0.0, 0.7):
            tokens_of(tiny_sampler, prompts, temperature=temperature, n_top=2, max_new_tokens=3 + i)
    assert n_compiled() == after


@pytest.mark.parametrize("n_rows", [1, 2, 3, 5, 6, 9])
def test_padding_changes_no_row(tiny_sampler, n_rows):
    """Any number of rows, some of them equal, of any lengths: what each gets alone, unpadded."""
    prompts = random_prompts([1 + 3 * i % 8 for i in range(n_rows)])
    prompts[n_rows // 2] = prompts[0]  # computed once, drawn twice
    seeds = list(range(7, 7 + n_rows))
    sampling = {"temperature": 1.0, "max_new_tokens": 12}
    assert tokens_of(tiny_sampler, prompts, seeds=seeds, **sampling) == [
        naive_tokens(tiny_sampler, prompt, 12, seed=seed, temperature=1.0)
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]


@pytest.mark.parametrize("block_size", [1, 2, 3])
def test_the_smallest_windows(block_size):
    config = gpt_config(block_size=block_size)
    tiny_sampler = Sampler(config, scaled_params(config))
    drawn = tokens_of(tiny_sampler, [[5], [6, 7, 8]], max_new_tokens=9)
    assert [len(ids) for ids in drawn] == [9, 9]


def test_no_new_tokens_and_no_prompts(tiny_sampler):
    assert tokens_of(tiny_sampler, [[1, 2]], max_new_tokens=0) == [[]]
    assert tokens_of(tiny_sampler, [], max_new_tokens=3) == []
