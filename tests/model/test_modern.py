"""The newer parts of the model, against a naive NumPy model in float64 and against their rules."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_trees_close, equations, mean_loss, perturbed_params, tiny_gpt

from configs import base, modern, quickstart
from gptjax.inference import kv_cache
from gptjax.model import gpt, layers
from gptjax.model.config import GPTConfig
from gptjax.model.flops import count_params, flops_per_token
from gptjax.optim.optimizer import decay_mask


def modern_gpt(**changes):
    shape = {"vocab_size": 40, "block_size": 12, "n_layer": 3, "n_head": 4, "n_embd": 32}
    parts = {"norm": "rmsnorm", "position": "rope", "qk_norm": True, "mlp": "swiglu"}
    heads = {"n_kv_head": 2, "tie_embeddings": False}
    return tiny_gpt(**{**shape, **parts, **heads, "bias": False, **changes})


MODERN = modern_gpt()
SHAPES = {
    "modern": MODERN,
    "tied, one head of keys": modern_gpt(n_kv_head=1, tie_embeddings=True),
    "another theta, MLP width": modern_gpt(rope_theta=100.0, mlp_dim=40),
    "relu2, all heads": modern_gpt(mlp="relu2", n_kv_head=0, qk_norm=False),
    "parts of both": modern_gpt(
        norm="layernorm", bias=True, position="learned", mlp="relu2", mlp_dim=24
    ),
    "RMSNorm, learned": modern_gpt(position="learned", mlp="gelu", qk_norm=False),
}
SEGMENT_IDS_BT = np.array([[1] * 5 + [2] * 7, [1] * 3 + [2] * 1 + [3] * 8], np.int32)
POSITIONS_BT = np.array([[*range(5), *range(7)], [*range(3), 0, *range(8)]], np.int32)


params_of = functools.cache(perturbed_params)


# One document a row, as arrays, so that a shape compiles one program.
WHOLE_BT = np.tile(np.arange(12, dtype=np.int32), (2, 1))
ONE_BT = np.ones_like(WHOLE_BT)


@functools.partial(jax.jit, static_argnums=0)
def logits(config, params, tokens_BT, positions_BT=WHOLE_BT, segment_ids_BT=ONE_BT):
    x_BTD = gpt.hidden_states(
        config, params, tokens_BT, positions_BT=positions_BT, segment_ids_BT=segment_ids_BT
    )
    return gpt.logits(config, params, x_BTD)


@pytest.fixture(scope="module")
def tokens_BT():
    return np.random.default_rng(0).integers(0, MODERN.vocab_size, (2, 12), dtype=np.int32)


# --- the naive model ---


def naive_norm(config, x, p):
    if config.norm == "layernorm":
        x = (x - x.mean()) / math.sqrt(x.var() + 1e-5)
        return x * p["scale"] + (p["bias"] if config.bias else 0)
    return x / math.sqrt((x**2).mean() + 1e-6) * p["scale"]


def naive_head(config, x_H, norm, position):
    """One query or key of one head: normalised, then its pairs rotated as complex numbers."""
    if config.qk_norm:
        x_H = x_H / math.sqrt((x_H**2).mean() + 1e-6) * norm["scale"]
    if config.position == "rope":
        half = len(x_H) // 2
        angles = np.array([position / config.rope_theta ** (i / half) for i in range(half)])
        rotated = (x_H[:half] + 1j * x_H[half:]) * np.exp(1j * angles)
        x_H = np.concatenate([rotated.real, rotated.imag])
    return x_H


def naive_mlp(config, x, p):
    def linear(name, x):
        return x @ p[name]["kernel"] + (p[name]["bias"] if config.bias else 0)

    hidden = linear("c_fc", x)
    if config.mlp == "swiglu":
        gate = linear("c_gate", x)
        hidden = gate / (1 + np.exp(-gate)) * hidden
    elif config.mlp == "relu2":
        hidden = np.maximum(hidden, 0) ** 2
    else:
        cubic = math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)
        hidden = 0.5 * hidden * (1 + np.tanh(cubic))
    return linear("c_proj", hidden)


def naive_logits(config, params, tokens_T, positions_T, segment_ids_T):
    """[T, V] of one row, in float64, one token and one head at a time."""
    params = jax.tree.map(np.float64, jax.device_get(params))
    n_head, kv_heads = config.n_head, config.n_kv_head
    width = config.n_embd // n_head
    xs = [params["wte"][token] for token in tokens_T]
    if config.position == "learned":
        xs = [x + params["wpe"][position] for x, position in zip(xs, positions_T, strict=True)]
    for layer in range(config.n_layer):
        p = jax.tree.map(lambda x, layer=layer: x[layer], params["blocks"])
        attn = p["attn"]
        queries, keys, values = [], [], []
        for x, position in zip(xs, positions_T, strict=True):
            y = naive_norm(config, x, p["ln_1"]) @ attn["c_attn"]["kernel"]
            y = (y + (attn["c_attn"]["bias"] if config.bias else 0)).reshape(-1, width)
            q, k, v = np.split(y, [n_head, n_head + kv_heads])
            queries.append([naive_head(config, h, attn.get("q_norm"), position) for h in q])
            keys.append([naive_head(config, h, attn.get("k_norm"), position) for h in k])
            values.append(v)
        for t, x in enumerate(xs):
            mixed = []
            for n in range(n_head):
                kv = n // (n_head // kv_heads)
                seen = [s for s in range(t + 1) if segment_ids_T[s] == segment_ids_T[t]]
                scores = np.array([queries[t][n] @ keys[s][kv] for s in seen]) / math.sqrt(width)
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                mixed.append(sum(w * values[s][kv] for w, s in zip(weights, seen, strict=True)))
            y = np.concatenate(mixed) @ attn["c_proj"]["kernel"]
            xs[t] = x + y + (attn["c_proj"]["bias"] if config.bias else 0)
        xs = [x + naive_mlp(config, naive_norm(config, x, p["ln_2"]), p["mlp"]) for x in xs]
    head = params["wte"] if config.tie_embeddings else params["lm_head"]
    return np.stack([head @ naive_norm(config, x, params["ln_f"]) for x in xs])


@pytest.mark.parametrize("documents", ["one a row", "unmasked", "masked"])
@pytest.mark.parametrize("name", SHAPES)
def test_logits_are_those_of_a_naive_model(name, documents, tokens_BT):
    config = SHAPES[name]
    params = params_of(config)
    positions = WHOLE_BT if documents == "one a row" else POSITIONS_BT
    segment_ids = SEGMENT_IDS_BT if documents == "masked" else ONE_BT
    ours = logits(config, params, tokens_BT, positions, segment_ids)
    rows = zip(tokens_BT, positions, segment_ids, strict=True)
    expected = np.stack([naive_logits(config, params, *row) for row in rows])
    assert np.abs(expected).max() > 0.5
    assert np.abs(ours - expected).max() < 1e-5 * np.abs(expected).max()


# --- rotary positions ---


def test_rotations_are_exact_to_float32_far_out():
    """bfloat16 cannot tell positions above 256 apart, float16 those above 2,048."""
    positions = np.array([[0, 1, 255, 256, 257, 1023, 1024, 4097]])
    cos, sin = layers.rope_table(jnp.asarray(positions), 64, 10_000.0)
    assert (cos.dtype, cos.shape) == (jnp.float32, (1, 8, 1, 32))
    angles = positions[0, :, None] / 10_000.0 ** (np.arange(32) / 32)
    # The angle itself is rounded: to 24 bits.
    tolerance = 4 * 2**-24 * (angles + 1)
    assert np.all(np.abs(cos[0, :, 0] - np.cos(angles)) < tolerance)
    assert np.all(np.abs(sin[0, :, 0] - np.sin(angles)) < tolerance)


@pytest.mark.parametrize("offset", [1, 500, 3000])
def test_products_of_queries_and_keys_depend_on_the_distance_only(offset):
    rng = np.random.default_rng(0)
    q, k = jnp.asarray(rng.normal(size=(2, 1, 16, 1, 64)), jnp.float32)

    def scores(q_offset, k_offset):
        places = jnp.arange(16)[None]
        rotated = [
            layers.apply_rope(x, layers.rope_table(places + by, 64, 10_000.0))[0, :, 0]
            for x, by in ((q, q_offset), (k, k_offset))
        ]
        return np.asarray(rotated[0] @ rotated[1].T)

    at_0 = scores(0, 0)
    assert np.abs(at_0).max() > 10
    tolerance = offset * 2**-24 * 64 + 1e-5  # angles are rounded to 24 bits
    np.testing.assert_allclose(scores(offset, offset), at_0, rtol=0, atol=tolerance)
    assert np.abs(scores(offset, 0) - at_0).max() > 1


def test_shifted_positions_give_the_same_logits(tokens_BT):
    params = params_of(MODERN)
    at_0 = logits(MODERN, params, tokens_BT)
    at_700 = logits(MODERN, params, tokens_BT, 700 + WHOLE_BT)
    np.testing.assert_allclose(at_700, at_0, rtol=0, atol=1e-3)
    stretched = logits(MODERN, params, tokens_BT, 2 * WHOLE_BT)
    assert np.abs(stretched - at_0).max() > 0.1


def test_angles_are_computed_once_and_in_float32(tokens_BT):
    """Not in each layer, nor again in a backward pass, and not in the compute dtype."""
    config = dataclasses.replace(MODERN, compute_dtype="bfloat16", remat="full")

    def total(params):
        return jnp.sum(logits(config, params, tokens_BT))

    jaxpr = jax.make_jaxpr(jax.grad(total))(params_of(MODERN)).jaxpr
    angles = [e for e in equations(jaxpr) if e.primitive.name in ("cos", "sin")]
    assert [v.aval.dtype for e in angles for v in e.invars] == [jnp.dtype("float32")] * 2
    inside = [e for e in equations(jaxpr) if e.primitive.name == "scan"]
    assert len(inside) == 2  # forward and backward
    for scan in inside:
        names = {e.primitive.name for e in equations(scan.params["jaxpr"].jaxpr)}
        assert not names & {"cos", "sin"}


def test_bfloat16_keeps_to_its_precision(tokens_BT):
    """Statistics and rotations are float32: the error is that of the matmuls' 8 bits."""
    params = params_of(MODERN)
    expected = logits(MODERN, params, tokens_BT)
    rounded = logits(dataclasses.replace(MODERN, compute_dtype="bfloat16"), params, tokens_BT)
    assert rounded.dtype == jnp.float32
    assert 0 < np.abs(rounded - expected).max() < 2**-4 * np.abs(expected).max()


def test_in_bfloat16_rms_norm_rounds_its_result_only():
    """An error of at most half the last digit: statistics in bfloat16 would add half of that."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 96)), jnp.bfloat16)
    exact = np.float64(x)
    exact /= np.sqrt(np.mean(exact**2, axis=-1, keepdims=True) + 1e-6)
    error = np.abs(np.float64(layers.RMSNorm(96, 1e-6)(x)) - exact)
    assert (error <= 1.001 * 2**-8 * np.abs(exact)).all()


# --- what holds for any shape ---


@pytest.mark.parametrize("name", ["modern", "parts of both"])
def test_causality_by_gradient(name):
    """[T, T]: how the state at t depends on the embedding of the token at s; all are different."""
    config = SHAPES[name]
    params, tokens = params_of(config), np.arange(12, dtype=np.int32)[None]
    direction_D = np.random.default_rng(2).normal(size=config.n_embd).astype(np.float32)

    @jax.jit
    @jax.jacrev
    def jacobian(wte, segment_ids):
        x_BTD = gpt.hidden_states(config, params | {"wte": wte}, tokens, segment_ids_BT=segment_ids)
        return x_BTD[0] @ direction_D

    def depends(segment_ids):
        return np.abs(jacobian(params["wte"], segment_ids)[:, :12]).max(-1)

    later = np.triu(np.ones((12, 12), bool), 1)
    depends_on = depends(ONE_BT[:1])
    assert np.all(depends_on[later] == 0)
    assert np.all(depends_on[~later] > 1e-5)
    apart = SEGMENT_IDS_BT[0][:, None] != SEGMENT_IDS_BT[0][None]
    assert np.all(depends(SEGMENT_IDS_BT[:1])[apart | later] == 0)


def loss_and_grads(config, params, tokens_BT):
    return jax.jit(jax.value_and_grad(functools.partial(mean_loss, config, tokens_BT)))(params)


@pytest.mark.parametrize(
    "changes",
    [
        {"scan_unroll": 3},
        {"remat": "dots"},
        {"remat": "full", "scan_unroll": 3},
        {"attention": "chunked"},
    ],
    ids=str,
)
def test_rearranging_the_arithmetic_changes_nothing(changes, tokens_BT):
    params = params_of(MODERN)
    plain = loss_and_grads(MODERN, params, tokens_BT)
    rearranged = loss_and_grads(dataclasses.replace(MODERN, **changes), params, tokens_BT)
    assert_trees_close(rearranged, plain, rtol=1e-5, atol=1e-6)


def test_shared_heads_are_full_heads_that_are_alike(tokens_BT):
    """Loss and gradients: a shared head's is the sum over those that use it."""
    params = params_of(MODERN)
    width, q_end = MODERN.head_dim, MODERN.n_embd
    kernel = params["blocks"]["attn"]["c_attn"]["kernel"]  # [L, D, (N + 2 K) H]
    heads = kernel[..., q_end:].reshape(3, 32, 4, width)  # two of keys, two of values
    full = jax.tree.map(lambda x: x, params)  # new dicts
    full["blocks"]["attn"]["c_attn"]["kernel"] = jnp.concatenate(
        [kernel[..., :q_end], jnp.repeat(heads, 2, axis=2).reshape(3, 32, -1)], axis=-1
    )
    value, grads = loss_and_grads(MODERN, params, tokens_BT)
    full_config = dataclasses.replace(MODERN, n_kv_head=4)
    expected, full_grads = loss_and_grads(full_config, full, tokens_BT)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    grad = full_grads["blocks"]["attn"]["c_attn"]["kernel"]
    summed = grad[..., q_end:].reshape(3, 32, 4, 2, width).sum(3).reshape(3, 32, -1)
    full_grads["blocks"]["attn"]["c_attn"]["kernel"] = jnp.concatenate(
        [grad[..., :q_end], summed], axis=-1
    )
    assert_trees_close(grads, full_grads, rtol=1e-4, atol=1e-6)


# --- initial values and size ---


def test_blocks_that_begin_at_zero_are_the_identity(tokens_BT):
    """And can learn: the projections get a gradient."""
    config = dataclasses.replace(MODERN, zero_init=True)
    params = gpt.init(config, jax.random.key(3))
    x_BTD = gpt.hidden_states(config, params, tokens_BT)
    embedded = params["wte"][tokens_BT]
    rms = np.sqrt(np.mean(np.float64(embedded) ** 2, -1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(x_BTD, embedded / rms, rtol=1e-6)
    _, grads = loss_and_grads(config, params, tokens_BT)
    for part in ("attn", "mlp"):
        assert np.all(params["blocks"][part]["c_proj"]["kernel"] == 0)
        per_layer = np.abs(grads["blocks"][part]["c_proj"]["kernel"]).max((1, 2))
        assert np.all(per_layer > 1e-6)


def test_initial_values():
    config = modern_gpt(n_embd=96, vocab_size=500, n_layer=2)
    params = jax.device_get(gpt.init(config, jax.random.key(3)))
    for name in ("wte", "lm_head"):
        assert params[name].std() == pytest.approx(0.02, rel=0.03)
    assert abs(np.corrcoef(params["wte"].ravel(), params["lm_head"].ravel())[0, 1]) < 0.03
    mlp = params["blocks"]["mlp"]
    assert mlp["c_gate"]["kernel"].std() == pytest.approx(0.02, rel=0.03)
    assert mlp["c_proj"]["kernel"].std() == pytest.approx(0.02 / 2, rel=0.03)
    alike = np.corrcoef(mlp["c_gate"]["kernel"].ravel(), mlp["c_fc"]["kernel"].ravel())[0, 1]
    assert abs(alike) < 0.03
    for norm in ("q_norm", "k_norm"):
        np.testing.assert_array_equal(params["blocks"]["attn"][norm]["scale"], np.ones((2, 24)))


def test_names_and_shapes_of_the_parameters():
    """Export, import and the optimizer's groups depend on them."""
    shapes = jax.eval_shape(lambda: gpt.init(MODERN, jax.random.key(0)))
    names = {
        jax.tree_util.keystr(path, simple=True, separator="."): x.shape
        for path, x in jax.tree.leaves_with_path(shapes)
    }
    hidden = 128  # 8/3 x 32 = 85.3, in whole multiples of 64
    assert names == {
        "wte": (40, 32),
        "lm_head": (40, 32),
        "ln_f.scale": (32,),
        "blocks.ln_1.scale": (3, 32),
        "blocks.ln_2.scale": (3, 32),
        "blocks.attn.c_attn.kernel": (3, 32, (4 + 2 * 2) * 8),
        "blocks.attn.q_norm.scale": (3, 8),
        "blocks.attn.k_norm.scale": (3, 8),
        "blocks.attn.c_proj.kernel": (3, 32, 32),
        "blocks.mlp.c_fc.kernel": (3, 32, hidden),
        "blocks.mlp.c_gate.kernel": (3, 32, hidden),
        "blocks.mlp.c_proj.kernel": (3, hidden, 32),
    }


@pytest.mark.parametrize(
    ("mlp", "width", "mlp_dim", "expected"),
    [
        ("gelu", 512, 0, 2048),
        ("relu2", 512, 0, 2048),
        ("swiglu", 768, 0, 2048),
        ("swiglu", 512, 0, 1408),  # 1365.3
        ("swiglu", 512, 1000, 1000),
    ],
)
def test_hidden_width(mlp, width, mlp_dim, expected):
    assert modern_gpt(mlp=mlp, n_embd=width, mlp_dim=mlp_dim).mlp_dim == expected


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("mlp", ["swiglu", "relu2"])
@pytest.mark.parametrize("kv_heads", [0, 2])
def test_size_and_flops_are_the_closed_forms(tied, mlp, kv_heads):
    config = modern_gpt(
        **{"vocab_size": 32_768, "block_size": 1024, "n_layer": 12, "n_head": 8},
        **{"n_embd": 512, "mlp": mlp, "n_kv_head": kv_heads, "tie_embeddings": tied},
    )
    keys_and_values = 2 * 512 * 64 * (kv_heads or 8)
    in_mlp = 3 * 512 * 1408 if mlp == "swiglu" else 2 * 512 * 2048
    matrices = 12 * (512 * 512 + keys_and_values + 512 * 512 + in_mlp)
    norms = 12 * (2 * 512 + 2 * 64) + 512
    tables = (1 if tied else 2) * 32_768 * 512
    assert count_params(config) == (matrices + norms + tables, matrices + norms)
    attention = 6 * 2 * 12 * 1024 * 512  # two products of T x D, and twice that backward
    assert flops_per_token(config) == 6 * (matrices + 32_768 * 512) + attention


# --- a token at a time ---


@pytest.mark.parametrize("name", SHAPES)
def test_cached_equals_uncached(name, tokens_BT):
    """Rows of different lengths have different positions."""
    config = SHAPES[name]
    params = params_of(config)
    whole = np.asarray(logits(config, params, tokens_BT))
    lengths = np.array([3, 7], np.int32)
    x_BTD, cache = jax.jit(functools.partial(kv_cache.prefill, config))(params, tokens_BT[:, :7])
    prompt_logits = np.asarray(gpt.logits(config, params, x_BTD))
    shape = (2 * config.n_kv_head, config.block_size, config.head_dim)
    assert {x.shape for x in jax.tree.leaves(cache)} == {shape}
    step = jax.jit(functools.partial(kv_cache.decode, config))
    by_layer = kv_cache.split_layers(config, params)
    tolerance = 1e-5 * np.abs(whole).max()
    for b, length in enumerate(lengths):
        assert np.abs(prompt_logits[b, :length] - whole[b, :length]).max() < tolerance
    for _ in range(9):
        at = np.minimum(lengths, 11)
        logits_BV, cache = step(params, by_layer, cache, tokens_BT[[0, 1], at], at)
        assert np.abs(logits_BV - whole[[0, 1], at]).max() < tolerance
        lengths = lengths + 1
    assert lengths.tolist() == [12, 16]


def test_all_keys_of_the_preset_reach_the_model():
    config = base.get_config()
    config.model.update(n_embd=256, n_head=4, bias=True, tie_embeddings=False)
    modern.apply(config)
    for model_config in (
        GPTConfig.from_config(config, 8192),
        GPTConfig.from_config(quickstart.get_config(), 8192),
    ):
        assert (
            model_config.norm,
            model_config.position,
            model_config.qk_norm,
            model_config.mlp,
        ) == ("rmsnorm", "rope", True, "swiglu")
        assert model_config.zero_init and model_config.tie_embeddings and not model_config.bias
        assert model_config.mlp_dim == 704 and model_config.n_kv_head == 4


def test_matrices_are_decayed_and_norms_are_not():
    mask = decay_mask(jax.eval_shape(lambda: gpt.init(MODERN, jax.random.key(0))))
    spared = {
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, decayed in jax.tree.leaves_with_path(mask)
        if not decayed
    }
    norms = ("blocks.ln_1", "blocks.ln_2", "blocks.attn.q_norm", "blocks.attn.k_norm", "ln_f")
    assert spared == {f"{name}.scale" for name in norms}
