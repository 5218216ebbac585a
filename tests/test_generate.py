"""Draws against NumPy, and text against a loop that shows the model nothing but the text."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax import generate, model
from gptjax.generate import choose, generate_text, generate_tokens

SAMPLING = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "seed": 0}


def gpt_config(**changes) -> model.GPTConfig:
    shape = {"vocab_size": 50, "block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 16}
    fixed = {"dropout": 0.0, "bias": True, "compute_dtype": "float32", "remat": "none"}
    return model.GPTConfig(**{**shape, **fixed, "scan_unroll": 1, **changes})


def scaled_params(config, scale=25.0):
    """Initial weights are so small that a model repeats its last token: these look further back."""
    params = model.init(config, jax.random.key(0))
    return jax.tree.map(lambda p: p * scale if p.std() > 0 else p, params)


@pytest.fixture(scope="module")
def gpt():
    config = gpt_config()
    return config, scaled_params(config)


# --- choose ---


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
        return choose(
            logits, key, temperature=jnp.float32(temperature), top_k=top_k, top_p=jnp.float32(top_p)
        )

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(11), n)))


@pytest.mark.parametrize("top_k", [0, 1, 5, 1000])
@pytest.mark.parametrize("top_p", [1e-6, 0.5, 1.0])
def test_temperature_0_is_greedy(top_k, top_p):
    for seed in range(3):
        logits = jax.random.normal(jax.random.key(seed), (40,))
        found = draws(logits, 20, temperature=0, top_k=top_k, top_p=top_p)
        assert found.dtype == np.int32
        assert set(found.tolist()) == {int(np.argmax(logits))}


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [
        (1.0, 0, 1.0),
        (0.5, 0, 1.0),
        (2.0, 0, 1.0),
        (1.0, 4, 1.0),
        (1.0, 12, 1.0),  # all there are
        (1.0, 100, 1.0),  # more than there are
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


# --- generate_tokens ---


@pytest.fixture(scope="module")
def naive(gpt):
    """Greedy text by a loop that runs the model on the text so far: no padding, no fixed shape."""
    config, params = gpt

    @jax.jit
    def last_logits(tokens_1T):
        return model.logits(config, params, model.hidden_states(config, params, tokens_1T))[0, -1]

    def run(prompt, n):
        text = list(prompt)
        for _ in range(n):
            seen = np.array([text[-config.block_size :]], np.int32)
            text.append(int(np.argmax(last_logits(seen))))
        return text[len(prompt) :]

    return run


@pytest.mark.parametrize("length", [1, 3, 8, 9, 20])
def test_greedy_text_equals_a_naive_loop(gpt, naive, length):
    """12 tokens in a window of 8: it fills, then slides; prompts of 9 and 20 start beyond it."""
    config, params = gpt
    prompt = np.random.default_rng(length).integers(0, config.vocab_size, length).tolist()
    found = list(generate_tokens(config, params, prompt, **SAMPLING, max_new_tokens=12))
    assert found == naive(prompt, 12)
    assert len(set(found)) > 3  # it is no loop of one token, which any bug could give


def test_of_a_long_text_only_the_window_matters(gpt):
    config, params = gpt
    rng = np.random.default_rng(3)
    window = rng.integers(0, 50, 8).tolist()
    texts = [
        list(generate_tokens(config, params, [*past, *window], **SAMPLING, max_new_tokens=6))
        for past in ([], rng.integers(0, 50, 5).tolist(), rng.integers(0, 50, 30).tolist())
    ]
    assert texts[0] == texts[1] == texts[2]
    changed = [(window[0] + 1) % 50, *window[1:]]  # the window's oldest token is seen
    logits = [
        model.logits(config, params, model.hidden_states(config, params, np.array([w], np.int32)))
        for w in (window, changed)
    ]
    assert np.abs(logits[0] - logits[1])[0, -1].max() > 1e-3


def test_the_seed_decides_the_text(gpt):
    config, params = gpt

    def text(seed):
        sampling = {**SAMPLING, "temperature": 1.5, "seed": seed, "max_new_tokens": 20}
        return tuple(generate_tokens(config, params, [1], **sampling))

    assert text(0) == text(0)
    assert len({text(seed) for seed in range(4)}) == 4


def test_each_token_has_a_draw_of_its_own(gpt):
    """A model to which all tokens are alike would repeat one, if all draws had the same key."""
    config, params = gpt
    uniform = params | {"wte": jnp.zeros_like(params["wte"])}
    sampling = {**SAMPLING, "temperature": 1.0, "max_new_tokens": 50}
    # Of 50 tokens, 50 draws meet 50 (1 - (1 - 1 / 50)^50) = 32 different ones, give or take 2.2.
    assert 21 < len(set(generate_tokens(config, uniform, [1], **sampling))) < 43


def test_one_compiled_step_serves_every_length(gpt):
    config, params = gpt
    sampling = {**SAMPLING, "top_k": 7, "max_new_tokens": 3}  # no other test has top_k = 7
    before = generate._next_token._cache_size()
    for length in (1, 4, 30):
        for temperature in (0.0, 0.7):
            changed = {**sampling, "temperature": temperature}
            list(generate_tokens(config, params, list(range(length)), **changed))
    assert generate._next_token._cache_size() == before + 1


def test_no_new_tokens(gpt):
    assert list(generate_tokens(*gpt, [1, 2], **SAMPLING, max_new_tokens=0)) == []


# --- generate_text ---


@pytest.fixture
def scripted(monkeypatch, store):
    """generate_text with a model that says what it is told to: -> (pieces, ids it was shown)."""

    def run(ids, prompt=""):
        shown = []

        def tokens(config, params, prompt, **sampling):
            shown.extend(prompt)
            yield from itertools.islice(ids, sampling["max_new_tokens"])

        monkeypatch.setattr(generate, "generate_tokens", tokens)
        pieces = generate_text(None, None, store.tokenizer, prompt, max_new_tokens=len(ids))
        return list(pieces), shown

    return run


def byte_ids(tokenizer, data: bytes) -> list[int]:
    """The byte tokens that spell `data`: the first 256 ids of one byte that follow the specials."""
    singles = {}
    for i in range(tokenizer.vocab_size):
        singles.setdefault(tokenizer.decode_bytes([i]), i)
    return [singles[bytes([b])] for b in data]


def test_the_model_sees_a_new_document(scripted, store):
    tokenizer = store.tokenizer
    assert scripted([], "")[1] == [tokenizer.bos_id]
    prompt = "The end. \u2581\U0001f600"
    assert scripted([], prompt)[1] == [tokenizer.bos_id, *tokenizer.encode(prompt)]


def test_the_text_ends_where_the_document_does(scripted, store):
    tokenizer = store.tokenizer
    first, second = tokenizer.encode("one text").tolist(), tokenizer.encode("another").tolist()
    pieces, _ = scripted([*first, tokenizer.bos_id, *second])
    assert "".join(pieces) == "one text"
    assert scripted([tokenizer.bos_id, *second])[0] == []


def test_a_model_that_wants_to_end_ends(store):
    """The same through a real model, whose only possible token is BOS."""
    tokenizer = store.tokenizer
    config = gpt_config(vocab_size=tokenizer.vocab_size)
    params = model.init(config, jax.random.key(0))
    params["ln_f"] = {"scale": jnp.zeros(16), "bias": jnp.ones(16)}
    params["wte"] = jnp.zeros_like(params["wte"]).at[tokenizer.bos_id].set(10.0)
    sampling = {**SAMPLING, "temperature": 1.0, "max_new_tokens": 50}
    assert list(generate_text(config, params, tokenizer, "Once", **sampling)) == []


CHARACTERS = "a\u00e9\u20ac\U0001f600\u2581\n"  # 1, 2, 3, 4, 3 and 1 bytes


def test_pieces_are_whole_characters(scripted, store):
    """Each byte comes alone, and is shown when its character is complete."""
    pieces, _ = scripted(byte_ids(store.tokenizer, CHARACTERS.encode()))
    assert pieces == list(CHARACTERS)


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_character_cut_off_at_the_end_is_not_shown(scripted, store, cut):
    unfinished = "\U0001f600".encode()[:cut]
    ids = byte_ids(store.tokenizer, b"so " + unfinished)
    assert "".join(scripted(ids)[0]) == "so "
    assert "".join(scripted([*ids, store.tokenizer.bos_id])[0]) == "so "


def test_bytes_that_are_no_character_are_left_out(scripted, store):
    ids = byte_ids(store.tokenizer, b"a\xff\xe2\x82b\xe2\x82\xac")
    assert "".join(scripted(ids)[0]) == "ab\u20ac"


def test_text_is_what_the_tokens_spell(store):
    """A model of random weights draws bytes of every kind, and now and then BOS."""
    tokenizer = store.tokenizer
    config = gpt_config(vocab_size=tokenizer.vocab_size, block_size=16)
    params = scaled_params(config, scale=5.0)
    for seed in range(8):
        sampling = {**SAMPLING, "temperature": 3.0, "seed": seed, "max_new_tokens": 40}
        ids = [tokenizer.bos_id, *tokenizer.encode("The ")]
        drawn = list(generate_tokens(config, params, ids, **sampling))
        if tokenizer.bos_id in drawn:
            drawn = drawn[: drawn.index(tokenizer.bos_id)]
        text = "".join(generate_text(config, params, tokenizer, "The ", **sampling))
        assert text == tokenizer.decode_bytes(drawn).decode(errors="ignore")
        assert len(text) > 5
