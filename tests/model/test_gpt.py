"""The model: causal, the same however it is arranged, and initialised as GPT-2."""

import dataclasses
import functools
import itertools
import math
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_trees_close, equations, mean_loss, perturbed_params, tiny_gpt

from configs import rtx4070, rtx4070_110m
from gptjax.model import gpt
from gptjax.model.config import GPTConfig
from gptjax.model.flops import count_params, flops_per_token

TINY = tiny_gpt(vocab_size=40, block_size=12, n_layer=3)


@pytest.fixture(scope="module")
def params():
    return perturbed_params(TINY)


@pytest.fixture(scope="module")
def tokens_BT():
    return np.random.default_rng(0).integers(0, TINY.vocab_size, (2, 12), dtype=np.int32)


# Compiled, because the model op by op takes seconds.
hidden_states = jax.jit(gpt.hidden_states, static_argnums=0)


def primitives(f, *arguments) -> Counter:
    """How often `f` uses each primitive."""
    return Counter(e.primitive.name for e in equations(jax.make_jaxpr(f)(*arguments).jaxpr))


# --- causality ---


def position_gradients(params, positions, segment_ids):
    """[T, T]: how much the state at t depends on the embedded input at s, as a largest |d|."""
    tokens = np.random.default_rng(1).integers(0, 40, (1, 12), dtype=np.int32)
    direction_D = np.random.default_rng(2).normal(size=16).astype(np.float32)

    def states(wpe):
        x_BTD = gpt.hidden_states(
            TINY, params | {"wpe": wpe}, tokens, positions_BT=positions, segment_ids_BT=segment_ids
        )
        return x_BTD[0] @ direction_D

    return np.abs(jax.jit(jax.jacrev(states))(params["wpe"])).max(-1)


def test_causality_by_gradient(params):
    depends = position_gradients(params, None, None)
    later = np.triu(np.ones((12, 12), bool), 1)
    assert np.all(depends[later] == 0)
    assert np.all(depends[~later] > 1e-4)


# --- documents in a row ---


@pytest.fixture(scope="module")
def packed_states(params):
    """f(tokens, masked): hidden states of a row of two documents, of 5 and 7 tokens."""
    segment_ids = np.array([[1] * 5 + [2] * 7], np.int32)
    positions = np.array([[*range(5), *range(7)]], np.int32)

    @functools.partial(jax.jit, static_argnums=1)
    def states(tokens_1T, masked):
        return gpt.hidden_states(
            TINY,
            params,
            tokens_1T,
            positions_BT=positions,
            segment_ids_BT=segment_ids if masked else None,
        )[0]

    return states


def test_the_document_mask_isolates(packed_states, tokens_BT):
    row = tokens_BT[:1]
    other = (row + 1) % TINY.vocab_size
    first_changed = np.concatenate([other[:, :5], row[:, 5:]], axis=1)
    second_changed = np.concatenate([row[:, :5], other[:, 5:]], axis=1)
    states = np.asarray(packed_states(row, True))
    changed = np.asarray(packed_states(second_changed, True))
    assert changed[:5].tobytes() == states[:5].tobytes()
    assert np.abs(changed[5:] - states[5:]).max() > 0.1
    changed = np.asarray(packed_states(first_changed, True))
    assert changed[5:].tobytes() == states[5:].tobytes()
    assert np.abs(changed[:5] - states[:5]).max() > 0.1
    # Without the mask, the second document sees the first.
    seen = np.asarray(packed_states(first_changed, False)) - np.asarray(packed_states(row, False))
    assert np.abs(seen[5:]).max(-1).min() > 1e-3


def test_a_packed_document_equals_the_document_alone(packed_states, params, tokens_BT):
    row = tokens_BT[:1]
    states = packed_states(row, True)
    for document in (slice(0, 5), slice(5, 12)):
        alone = hidden_states(TINY, params, row[:, document])[0]
        np.testing.assert_allclose(states[document], alone, rtol=0, atol=1e-5)


# --- arrangements of the same arithmetic ---


@pytest.fixture(scope="module")
def loss_and_grads(params, tokens_BT):
    """f(changes of the configuration) -> (loss, gradients)."""

    def run(**changes):
        config = dataclasses.replace(TINY, **changes)
        value_and_grad = jax.value_and_grad(functools.partial(mean_loss, config, tokens_BT))
        return jax.jit(value_and_grad)(params)

    return run


@pytest.fixture(scope="module")
def plain(loss_and_grads):
    return loss_and_grads()


def test_unrolling_the_layers_changes_nothing(loss_and_grads, plain):
    rearranged = loss_and_grads(scan_unroll=TINY.n_layer)
    assert_trees_close(rearranged, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("remat", ["dots", "full"])
@pytest.mark.parametrize("scan_unroll", [1, TINY.n_layer])
def test_remat_changes_nothing(loss_and_grads, plain, remat, scan_unroll):
    rearranged = loss_and_grads(remat=remat, scan_unroll=scan_unroll)
    assert_trees_close(rearranged, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scan_unroll", [1, 2, TINY.n_layer])
def test_xla_cannot_undo_remat(params, tokens_BT, scan_unroll):
    """Without a loop both passes are in one computation, where equal matmuls would be merged."""
    config = dataclasses.replace(TINY, remat="full", scan_unroll=scan_unroll)
    everything = equations(
        jax.make_jaxpr(jax.grad(functools.partial(mean_loss, config, tokens_BT)))(params).jaxpr
    )
    barred = {e.params["prevent_cse"] for e in everything if "prevent_cse" in e.params}
    assert barred == {scan_unroll == TINY.n_layer}


def test_remat_is_really_on(params, tokens_BT):
    matmuls = {}
    for remat in ("none", "dots", "full"):
        config = dataclasses.replace(TINY, remat=remat)
        f = functools.partial(mean_loss, config, tokens_BT)
        count = primitives(f, params)
        assert (count["checkpoint"] + count["remat2"] > 0) == (remat != "none")
        matmuls[remat] = primitives(jax.grad(f), params)["dot_general"]
    # `dots` computes the two matmuls of attention again, `full` those and the six of the linear
    # layers (c_attn has three) but the last, whose output nothing needs.
    assert matmuls["dots"] == matmuls["none"] + 2
    assert matmuls["full"] == matmuls["none"] + 2 + 5


def test_bfloat16_is_for_arithmetic_only(params, tokens_BT, plain):
    config = dataclasses.replace(TINY, compute_dtype="bfloat16")
    value_and_grad = jax.value_and_grad(functools.partial(mean_loss, config, tokens_BT))
    value, grads = jax.jit(value_and_grad)(params)
    assert value.dtype == jnp.float32
    assert {g.dtype for g in jax.tree.leaves(grads)} == {jnp.dtype("float32")}
    drawn = jax.eval_shape(lambda: gpt.init(config, jax.random.key(0)))
    assert {p.dtype for p in jax.tree.leaves(drawn)} == {jnp.dtype("float32")}

    x_BTD = jax.eval_shape(lambda p: gpt.hidden_states(config, p, tokens_BT), params)
    assert x_BTD.dtype == jnp.bfloat16
    logits_BTV = jax.eval_shape(lambda p, x: gpt.logits(config, p, x), params, x_BTD)
    assert (logits_BTV.dtype, logits_BTV.shape) == (jnp.float32, (2, 12, 40))

    def operands(f):
        everything = equations(jax.make_jaxpr(f)(params).jaxpr)
        return [
            variable.aval.dtype
            for equation in everything
            if equation.primitive.name == "dot_general"
            for variable in equation.invars
        ]

    # The reference's own backward pass has float32 operands: those of the others do not.
    chunked = dataclasses.replace(config, attention="chunked")
    f = functools.partial(mean_loss, chunked, tokens_BT)
    forward = 6 + 2 + 1  # four linear layers, of which c_attn has three, 2 of attention, the head
    assert operands(f) == 2 * forward * [jnp.bfloat16]
    # Each has two gradients, and the weights of attention are computed again.
    assert operands(jax.grad(f)) == 2 * (3 * forward + 1) * [jnp.bfloat16]
    expected, _ = plain
    assert value != expected
    np.testing.assert_allclose(value, expected, rtol=0.02)


def test_positions_count_from_0_by_default(params, tokens_BT):
    explicit = np.broadcast_to(np.arange(12, dtype=np.int32), (2, 12))
    a = hidden_states(TINY, params, tokens_BT)
    b = hidden_states(TINY, params, tokens_BT, positions_BT=explicit)
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


# --- dropout ---


def test_dropout_keeps_the_mean():
    n, rate = 100_000, 0.2
    x = jnp.full((2, n // 20, 10), 3.0)  # one value alone is dropped, not a column
    keys = jax.random.split(jax.random.key(4), 2)
    dropped = np.asarray(gpt.dropout(x, rate, keys))
    assert (dropped[0] != dropped[1]).any()
    np.testing.assert_array_equal(dropped[1:], gpt.dropout(x[1:], rate, keys[1:]))
    assert set(dropped.ravel().tolist()) == {0.0, np.float32(3) / np.float32(0.8)}
    sigma = math.sqrt(rate * (1 - rate) / n)
    assert abs((dropped == 0).mean() - rate) < 5 * sigma
    assert abs(dropped.mean(dtype=np.float64) - 3) < 5 * sigma * 3 / (1 - rate)
    assert gpt.dropout(x.astype(jnp.bfloat16), rate, keys).dtype == jnp.bfloat16


def test_dropout_in_the_model(params, tokens_BT):
    config = dataclasses.replace(TINY, dropout=0.3)

    def bits(config, keys_B):
        x_BTD = hidden_states(config, params, tokens_BT, dropout_keys_B=keys_B)
        return np.asarray(x_BTD).tobytes()

    keys = jax.random.split(jax.random.key(0), (3, 2))  # for each of the two rows
    none = bits(TINY, None)
    assert bits(TINY, keys[0]) == none  # a rate of 0
    assert bits(config, None) == none  # no key, as in evaluation
    drawn = [bits(config, key) for key in keys]
    assert bits(config, keys[0]) == drawn[0]
    assert len({none, *drawn}) == 4


def test_every_dropout_has_its_own_key(monkeypatch, params, tokens_BT):
    """The embedding's, and two a block: repeated masks would drop the same values throughout."""
    seen = []

    def spy(x, rate, keys_B):
        jax.debug.callback(
            lambda k: seen.extend(map(tuple, k.tolist())), jax.random.key_data(keys_B)
        )
        return x

    monkeypatch.setattr(gpt, "dropout", spy)
    config = dataclasses.replace(TINY, dropout=0.3)
    gpt.hidden_states(
        config, params, tokens_BT, dropout_keys_B=jax.random.split(jax.random.key(0), 2)
    )
    jax.effects_barrier()
    assert len(seen) == len(set(seen)) == 2 * (1 + 2 * TINY.n_layer)  # two rows


# --- initial values and size ---


@pytest.fixture(scope="module", params=[True, False], ids=["bias", "no_bias"])
def drawn(request):
    config = tiny_gpt(vocab_size=700, block_size=300, n_layer=5, n_embd=96, bias=request.param)
    params = jax.device_get(gpt.init(config, jax.random.key(3)))
    paths = jax.tree_util.tree_leaves_with_path(params)
    return config, {
        jax.tree_util.keystr(p, simple=True, separator="."): np.float64(x) for p, x in paths
    }


def test_init_is_that_of_gpt2(drawn):
    config, leaves = drawn
    residual = 0.02 / math.sqrt(2 * config.n_layer)
    stds = {
        "wte": 0.02,
        "wpe": 0.02,
        "blocks.attn.c_attn.kernel": 0.02,
        "blocks.attn.c_proj.kernel": residual,
        "blocks.mlp.c_fc.kernel": 0.02,
        "blocks.mlp.c_proj.kernel": residual,
    }
    for name, x in leaves.items():
        if name.endswith(".scale"):
            assert np.all(x == 1), name
        elif name.endswith(".bias"):
            assert np.all(x == 0), name
        else:
            std = stds.pop(name)
            layers = x if name.startswith("blocks") else x[None]
            for layer in layers:
                assert abs(layer.std() - std) < 5 * std / math.sqrt(2 * layer.size), name
                assert abs(layer.mean()) < 5 * std / math.sqrt(layer.size), name
                kurtosis = np.mean((layer / std) ** 4)  # 3 for a normal distribution, sigma 24 / n
                assert abs(kurtosis - 3) < 5 * math.sqrt(96 / layer.size), name
    assert not stds
    assert any(name.endswith(".bias") for name in leaves) == config.bias


def test_no_two_matrices_are_drawn_from_one_key(drawn):
    """Matrices of one key would begin with the same numbers, up to a factor."""
    _, leaves = drawn
    beginnings = {}
    for name, x in leaves.items():
        if x.std() > 0:
            for i, layer in enumerate(x if name.startswith("blocks") else x[None]):
                beginnings[name, i] = layer.ravel()[:9216]
    assert len(beginnings) == 2 + 4 * 5
    for (a, x), (b, y) in itertools.combinations(beginnings.items(), 2):
        assert abs(np.corrcoef(x, y)[0, 1]) < 6 / math.sqrt(9216), (a, b)


def test_count_params_counts_what_is_there(drawn):
    config, leaves = drawn
    embeddings = leaves["wte"].size + leaves["wpe"].size
    total = sum(x.size for x in leaves.values())
    assert count_params(config) == (total, total - embeddings)


@pytest.mark.parametrize(
    ("file", "total"), [(rtx4070, 55_063_040), (rtx4070_110m, 110_906_112)], ids=["55M", "110M"]
)
def test_size_of_the_recipe(file, total):
    config = GPTConfig.from_config(file.get_config(), vocab_size=32_768)
    layers, width, block_size = 12, file.get_config().model.n_embd, 1024
    matrices = layers * (3 + 1 + 4 + 4) * width**2
    norms = (2 * layers + 1) * width  # without biases
    embeddings = (32_768 + block_size) * width  # the head is tied
    assert count_params(config) == (matrices + norms + embeddings, matrices + norms)
    assert matrices + norms + embeddings == total


@pytest.mark.parametrize("shape", [(128, 128, 512), (64, 192, 2048), (256, 96, 256)])
def test_flops_per_token_are_those_xla_counts(shape):
    """Unrolled, for XLA counts a loop's body once; nothing is run."""
    block_size, width, vocab_size = shape
    sizes = {"block_size": block_size, "n_embd": width, "vocab_size": vocab_size}
    config = tiny_gpt(**sizes, n_layer=2, scan_unroll=2, bias=False)
    shapes = jax.eval_shape(lambda: gpt.init(config, jax.random.key(0)))
    tokens_BT = np.zeros((2, block_size + 1), np.int32)
    grad = jax.jit(jax.grad(functools.partial(mean_loss, config, tokens_BT)))
    counted = grad.lower(shapes).compile().cost_analysis()["flops"] / (2 * block_size)
    assert 1 <= counted / flops_per_token(config) < 1.05  # XLA counts norms and GELUs, too
