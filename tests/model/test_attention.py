"""Attention: each implementation against a naive softmax, its gradients against the reference's."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import equations

from configs import debug, rtx4070
from configs.errors import UserError
from configs.validate import validate
from gptjax.model import attention as attention_lib
from gptjax.model.attention import attention, choose, pallas_attention
from gptjax.model.chunked_attention import CHUNK, chunked_attention
from gptjax.model.config import GPTConfig

# cuDNN runs on a GPU only.
IMPLEMENTATIONS = {
    "xla": functools.partial(attention, implementation="xla"),
    "chunked": functools.partial(attention, implementation="chunked"),
    "chunked by 24": functools.partial(chunked_attention, chunk=24),
    "pallas": functools.partial(pallas_attention, interpret=True),
}


def inputs(length, width, *, batch=2, heads=3):
    """q, k, v, a direction to differentiate in, and documents that end in padding."""
    rng = np.random.default_rng(2)
    arrays = rng.normal(size=(4, batch, length, heads, width))
    segment_ids = np.sort(rng.integers(1, 4, (batch, length)), axis=1).astype(np.int32)
    segment_ids[-1, -2:] = 0  # padding
    assert len(set(segment_ids[0])) > 1
    return arrays, segment_ids


def naive_attention(q_BTNH, k_BTNH, v_BTNH, segment_ids_BT):
    out_BTNH = np.zeros_like(q_BTNH)
    n_batch, length, n_head, width = q_BTNH.shape
    for b, t, n in itertools.product(range(n_batch), range(length), range(n_head)):
        seen = [s for s in range(t + 1) if segment_ids_BT[b, s] == segment_ids_BT[b, t]]
        scores = np.array([q_BTNH[b, t, n] @ k_BTNH[b, s, n] for s in seen]) / math.sqrt(width)
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        out_BTNH[b, t, n] = sum(w * v_BTNH[b, s, n] for w, s in zip(weights, seen, strict=True))
    return out_BTNH


def naive_gradients(q_BTNH, k_BTNH, v_BTNH, direction_BTNH, segment_ids_BT):
    """By the rules for a softmax and a product, from the whole matrix of weights, in float64."""
    length, width = q_BTNH.shape[1], q_BTNH.shape[3]
    seen = np.tril(np.ones((length, length), bool))[None, None]
    seen = seen & (segment_ids_BT[:, None, :, None] == segment_ids_BT[:, None, None, :])
    scores = np.einsum("btnh,bsnh->bnts", q_BTNH, k_BTNH) / math.sqrt(width)
    weights = np.where(seen, np.exp(scores), 0)
    weights /= weights.sum(-1, keepdims=True)
    dweights = np.einsum("btnh,bsnh->bnts", direction_BTNH, v_BTNH)
    dscores = weights * (dweights - (weights * dweights).sum(-1, keepdims=True)) / math.sqrt(width)
    return (
        np.einsum("bnts,bsnh->btnh", dscores, k_BTNH),
        np.einsum("bnts,btnh->bsnh", dscores, q_BTNH),
        np.einsum("bnts,btnh->bsnh", weights, direction_BTNH),
    )


def grouped(f, times):
    """The naive function `f` for keys and values that `times` heads of queries share."""

    def run(q, k, v, *rest):
        results = f(q, np.repeat(k, times, 2), np.repeat(v, times, 2), *rest)
        if isinstance(results, np.ndarray):
            return results
        dq, *dkv = results  # a shared head sums over the heads that use it
        return dq, *(x.reshape(*k.shape[:3], times, -1).sum(3) for x in dkv)

    return run


def out_and_gradients(f, arrays, segment_ids, dtype=jnp.float32):
    q, k, v, direction = (jnp.asarray(a, dtype) for a in arrays)
    segment_ids = None if segment_ids is None else jnp.asarray(segment_ids)

    @jax.jit
    def run(q, k, v):
        out, pullback = jax.vjp(lambda q, k, v: f(q, k, v, segment_ids), q, k, v)
        return out, *pullback(direction)

    return run(q, k, v)


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "documents"])
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
# Rows shorter than a chunk, of several chunks and a rest, of whole chunks; odd widths of heads.
@pytest.mark.parametrize(("length", "width"), [(9, 4), (35, 12), (128, 8)])
def test_equals_a_naive_softmax_forward_and_backward(name, length, width, masked):
    if name == "xla" and length > 9:
        pytest.skip("the reference needs one proof only")
    arrays, segment_ids = inputs(length, width, heads=2)
    documents = segment_ids if masked else np.ones_like(segment_ids)
    results = out_and_gradients(IMPLEMENTATIONS[name], arrays, segment_ids if masked else None)
    expected = (naive_attention(*arrays[:3], documents), *naive_gradients(*arrays, documents))
    for what, a, b in zip(("out", "dq", "dk", "dv"), results, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=5e-6, err_msg=what)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_heads_of_queries_share_keys_and_values(name, kv_heads):
    """Head n of N uses keys and values n K / N, as in Hugging Face's models."""
    (q, k, v, direction), segment_ids = inputs(35, 8, heads=4)
    k, v = k[:, :, :kv_heads], v[:, :, :kv_heads]
    results = out_and_gradients(IMPLEMENTATIONS[name], (q, k, v, direction), segment_ids)
    naive = grouped(naive_attention, 4 // kv_heads), grouped(naive_gradients, 4 // kv_heads)
    expected = naive[0](q, k, v, segment_ids), *naive[1](q, k, v, direction, segment_ids)
    for what, a, b in zip(("out", "dq", "dk", "dv"), results, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=what)


# `mha` multiplies and sums the output and its gradient in bfloat16, hence the larger factor.
@pytest.mark.parametrize(("name", "factor"), [("chunked by 24", 1.5), ("pallas", 2)])
def test_bfloat16_is_as_accurate_as_the_reference(name, factor):
    """Against float64: the error (root mean square) is about that of the plain implementation."""
    arrays, segment_ids = inputs(64, 16)
    arrays = np.float64(jnp.asarray(arrays, jnp.bfloat16))
    expected = (naive_attention(*arrays[:3], segment_ids), *naive_gradients(*arrays, segment_ids))
    errors = {}
    for which in ("xla", name):
        results = out_and_gradients(IMPLEMENTATIONS[which], arrays, segment_ids, jnp.bfloat16)
        assert {x.dtype for x in results} == {jnp.dtype("bfloat16")}
        errors[which] = [
            np.sqrt(np.mean((np.float64(a) - b) ** 2))
            for a, b in zip(results, expected, strict=True)
        ]
    assert np.all(np.array(errors[name]) <= factor * np.array(errors["xla"]))


@pytest.mark.parametrize("name", ["xla", "chunked"])
def test_bfloat16_has_a_float32_softmax(name):
    rng = np.random.default_rng(2)
    q, k, v = (jnp.bfloat16(a) for a in 3 * rng.normal(size=(3, 1, 64, 2, 8)))
    f = IMPLEMENTATIONS[name]
    out = f(q, k, v, None)
    assert out.dtype == jnp.bfloat16
    expected = naive_attention(*(np.float64(a) for a in (q, k, v)), np.ones((1, 64)))
    # Weights and result are rounded to 8 bits; a softmax in bfloat16 would be wrong by far more.
    np.testing.assert_allclose(np.float64(out), expected, rtol=0, atol=2**-8 * np.abs(v).max())

    def pullback(q, k, v):
        return jax.vjp(lambda q: f(q, k, v, None), q)[1](q)

    exponentials = {
        variable.aval.dtype
        for equation in equations(jax.make_jaxpr(pullback)(q, k, v).jaxpr)
        if equation.primitive.name == "exp"
        for variable in equation.invars
    }
    assert exponentials == {jnp.dtype("float32")}


def test_chunked_never_builds_all_scores():
    length, heads = 1024, 2

    def largest(name):
        x = jax.ShapeDtypeStruct((1, length, heads, 8), jnp.float32)

        def run(q, k, v, direction):
            return jax.vjp(lambda *qkv: IMPLEMENTATIONS[name](*qkv, None), q, k, v)[1](direction)

        everything = equations(jax.make_jaxpr(run)(x, x, x, x).jaxpr)
        return max(variable.aval.size for equation in everything for variable in equation.outvars)

    assert largest("xla") == heads * length * length
    assert largest("chunked") == heads * CHUNK * length


def test_chunked_computes_little_of_what_causality_hides():
    def flops(f):
        x = jax.ShapeDtypeStruct((1, 1024, 1, 64), jnp.float32)
        return jax.jit(f).lower(x, x, x, None).compile().cost_analysis()["flops"]

    assert flops(IMPLEMENTATIONS["chunked"]) < 0.6 * flops(IMPLEMENTATIONS["xla"])


# --- the choice of an implementation ---


def test_cudnn_with_documents_is_refused_not_ignored():
    arrays, segment_ids = inputs(16, 8)
    q, k, v = (jnp.bfloat16(a) for a in arrays[:3])
    with pytest.raises(UserError, match="no document mask"):
        attention(q, k, v, jnp.asarray(segment_ids), implementation="cudnn")
    config = rtx4070.get_config()
    config.model.attention = "cudnn"
    validate(config, n_devices=1)
    config.data.document_mask = True
    with pytest.raises(UserError, match=r"cannot honour data\.document_mask"):
        validate(config, n_devices=1)


def test_cudnn_takes_half_precision_and_heads_of_eights():
    config = debug.get_config()
    config.model.attention, config.model.compute_dtype = "cudnn", "float32"
    config.model.n_head, config.model.n_embd = 4, 16
    with pytest.raises(UserError, match="bfloat16(.|\n)*multiple of 8"):
        validate(config, n_devices=1)


@pytest.mark.parametrize("name", ["cudnn", "pallas"])
def test_a_gpu_kernel_on_a_cpu_is_refused_at_start(name):
    config = debug.get_config()
    config.model.attention = name
    with pytest.raises(UserError, match="needs an NVIDIA GPU"):
        choose(config)
    # The shape is still available, to plan a run on another machine.
    assert GPTConfig.from_config(config, 512).attention == name


def test_on_a_cpu_auto_takes_chunks_for_long_rows():
    config = debug.get_config()
    assert choose(config)[0] == GPTConfig.from_config(config, 512).attention == "xla"
    config.model.block_size = 1024
    name, reason = choose(config)
    assert name == GPTConfig.from_config(config, 512).attention == "chunked"
    assert "no GPU" in reason


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Simulates a GPU for `choose`; yields its kernels, which a test can replace."""
    kernels = {"cudnn": attention_lib._xla, "pallas": attention_lib._xla}
    real = attention_lib.attention

    def fake(q, k, v, segment_ids=None, *, implementation):
        if implementation in kernels:
            return kernels[implementation](q, k, v, segment_ids)
        return real(q, k, v, segment_ids, implementation=implementation)

    monkeypatch.setattr(attention_lib, "attention", fake)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    attention_lib._probe.cache_clear()
    yield kernels
    attention_lib._probe.cache_clear()


def broken(q, k, v, segment_ids):
    raise RuntimeError("CUDNN_STATUS_NOT_SUPPORTED\nand a long story")


def wrong(q, k, v, segment_ids):
    return attention_lib._xla(q, k, v, None) * 1.1


def ignores_documents(q, k, v, segment_ids):
    return attention_lib._xla(q, k, v, None)


def not_a_number(q, k, v, segment_ids):
    return attention_lib._xla(q, k, v, None) * jnp.nan


def wrong_backward(q, k, v, segment_ids):
    return attention_lib._xla(q, jax.lax.stop_gradient(k), v, segment_ids)


def fails_for(**limits):
    """A kernel that works only for shorter rows, fewer heads, or one head of keys a query's."""

    def kernel(q, k, v, segment_ids):
        sizes = {"length": q.shape[1], "heads": q.shape[2], "shared": q.shape[2] // k.shape[2]}
        if any(sizes[name] > limit for name, limit in limits.items()):
            raise RuntimeError("shape not supported")
        return attention_lib._xla(q, k, v, segment_ids)

    return kernel


@pytest.mark.parametrize("limits", [{"length": 128}, {"heads": 4}, {"shared": 1}])
def test_kernels_are_tried_at_the_shape_of_the_run(as_on_a_gpu, limits):
    config = rtx4070.get_config()
    config.model.update(block_size=256, n_kv_head=4, n_embd=256)
    as_on_a_gpu["cudnn"] = fails_for(**limits)
    assert choose(config)[0] == "pallas"
    config.model.update(block_size=128, n_head=4, n_embd=128)
    assert choose(config)[0] == "cudnn"


@pytest.mark.parametrize(
    ("cudnn", "pallas", "documents", "expected", "reason"),
    [
        (None, None, False, "cudnn", "equals the reference"),
        (None, None, True, "pallas", "equals the reference"),
        (broken, None, False, "pallas", "cudnn does not work here: RuntimeError: CUDNN_STATUS_NOT"),
        (wrong, wrong_backward, False, "chunked", "not those of the reference"),
        (not_a_number, broken, False, "chunked", "not those of the reference"),
        (None, ignores_documents, True, "chunked", "not those of the reference"),
    ],
)
def test_auto_takes_the_first_that_works(as_on_a_gpu, cudnn, pallas, documents, expected, reason):
    as_on_a_gpu |= {k: v for k, v in {"cudnn": cudnn, "pallas": pallas}.items() if v}
    config = rtx4070.get_config()
    config.model.update(block_size=256, n_embd=128)
    config.data.document_mask = documents
    name, why = choose(config)
    assert name == expected
    assert reason in why
    assert "long story" not in why
    assert GPTConfig.from_config(config, 512).attention == expected
    if cudnn is broken:
        config.model.attention = "cudnn"
        with pytest.raises(UserError, match="CUDNN_STATUS_NOT_SUPPORTED"):
            choose(config)


def test_kernels_are_tried_as_the_run_compiles_them(as_on_a_gpu, monkeypatch):
    """With an option that XLA does not know, no kernel compiles."""

    def options(*, deterministic):
        return {"no_such_option": True} if deterministic else {}

    monkeypatch.setattr(attention_lib, "compiler_options", options)
    config = rtx4070.get_config()
    config.model.attention = "cudnn"
    assert choose(config)[0] == "cudnn"
    config.deterministic = True
    with pytest.raises(UserError, match="'cudnn' does not work here: .*'no_such_option'"):
        choose(config)
