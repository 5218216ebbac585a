"""The loss against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import equations

from gptjax.model.loss import SoftTargets, cross_entropy_sum, multi_token_loss

B, T, D, V = 3, 8, 5, 11


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(B, T, D)).astype(np.float32)
    w = rng.normal(size=(V, D)).astype(np.float32)
    targets = rng.integers(0, V, (B, T), dtype=np.int32)
    mask = rng.random((B, T)) < 0.7
    return x, w, targets, mask


def reference(x, w, targets, mask):
    logits = x.astype(np.float64) @ w.astype(np.float64).T
    log_z = np.log(np.exp(logits).sum(-1))
    nats = log_z - np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    return (nats * mask).sum()


@pytest.mark.parametrize("chunk", [0, 2, 6, 24])
def test_equals_numpy(arrays, chunk):
    total = cross_entropy_sum(*arrays, chunk=chunk)
    assert total.dtype == jnp.float32
    np.testing.assert_allclose(total, reference(*arrays), rtol=1e-6)


def reference_dlogits(x, w, targets, mask):
    """The derivative by the logits in float64: (softmax - one-hot) times mask."""
    weights = np.exp(x.astype(np.float64) @ w.astype(np.float64).T)
    dlogits = weights / weights.sum(-1, keepdims=True) - np.eye(len(w))[targets]
    return dlogits * mask[..., None]


def relative_error(a, b):
    return np.linalg.norm(np.float64(a) - b) / np.linalg.norm(b)


@pytest.mark.parametrize("chunk", [0, 2, 6, 24])
def test_gradients_equal_numpy(arrays, chunk):
    x, w, targets, mask = arrays
    dlogits = reference_dlogits(*arrays)
    gradients = dlogits @ w, np.einsum("btv,btd->vd", dlogits, x)

    def scaled(x, w):  # a cotangent that is not 1
        return 0.25 * cross_entropy_sum(x, w, targets, mask, chunk=chunk)

    for actual, expected in zip(jax.grad(scaled, argnums=(0, 1))(x, w), gradients, strict=True):
        np.testing.assert_allclose(actual, 0.25 * expected, rtol=1e-5, atol=1e-6)


def test_in_bfloat16_only_the_gradient_of_the_logits_is_rounded():
    """Sums over tokens, vocabulary and chunks are float32: in bfloat16, dw would be 2e-3 off."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(8, 128, 32)), jnp.bfloat16)
    w = np.float32(jnp.asarray(0.3 * rng.normal(size=(64, 32)), jnp.bfloat16))
    targets = rng.integers(0, 64, (8, 128), dtype=np.int32)
    mask = rng.random((8, 128)) < 0.9
    dlogits = reference_dlogits(np.float32(x), w, targets, mask)
    rounded = np.float64(jnp.asarray(dlogits, jnp.bfloat16))
    expected_dx, expected_dw = rounded @ w, np.einsum("btv,btd->vd", rounded, np.float64(x))
    for chunk in (0, 64, 16):
        dx, dw = jax.grad(cross_entropy_sum, argnums=(0, 1))(x, w, targets, mask, chunk)
        assert (dx.dtype, dw.dtype) == (jnp.bfloat16, jnp.float32)
        assert relative_error(dw, expected_dw) < 1e-4
        assert relative_error(dx, expected_dx) < 2e-3  # half of bfloat16's last digit


def test_matmuls_of_bfloat16_sum_in_float32(arrays):
    """Logits and gradients: by the program, for XLA on a CPU may drop the rounding to bfloat16."""
    x, w, targets, mask = arrays
    x = jnp.asarray(x, jnp.bfloat16)

    def of(function):
        jaxpr = jax.make_jaxpr(function)(x, w).jaxpr
        return [e for e in equations(jaxpr) if e.primitive.name == "dot_general"]

    def loss(x, w):
        return cross_entropy_sum(x, w, targets, mask, 6)

    dots = [*of(loss), *of(jax.grad(loss, argnums=(0, 1)))]
    assert len(dots) == 1 + 3
    for dot in dots:
        assert [str(v.aval.dtype) for v in dot.invars] == ["bfloat16"] * 2
        assert str(dot.outvars[0].aval.dtype) == "float32"


def test_logits_are_computed_once_also_for_the_gradient(arrays):
    x, w, targets, mask = arrays
    for chunk in (0, 6):
        dots = [
            equation
            for equation in equations(
                jax.make_jaxpr(jax.grad(lambda x: cross_entropy_sum(x, w, targets, mask, chunk)))(  # noqa: B023
                    x
                ).jaxpr
            )
            if equation.primitive.name == "dot_general"
        ]
        assert len(dots) == 3


def test_chunks_change_neither_value_nor_gradient(arrays):
    x, w, targets, mask = arrays

    def value_and_grad(chunk):
        return jax.value_and_grad(
            lambda x, w: cross_entropy_sum(x, w, targets, mask, chunk=chunk), argnums=(0, 1)
        )(x, w)

    for a, b in zip(
        jax.tree.leaves(value_and_grad(0)), jax.tree.leaves(value_and_grad(4)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_chunks_keep_whole_logits_from_existing(arrays):
    def sizes(chunk):
        jaxpr = jax.make_jaxpr(jax.grad(lambda x: cross_entropy_sum(x, *arrays[1:], chunk=chunk)))(
            arrays[0]
        )
        return str(jaxpr)

    assert f"f32[{B * T},{V}]" in sizes(0)
    assert f"f32[{B * T},{V}]" not in sizes(4)


def test_masked_targets_count_nothing(arrays):
    x, w, targets, mask = arrays
    other = np.where(mask, targets, (targets + 1) % V)
    assert cross_entropy_sum(x, w, targets, mask, chunk=0) == cross_entropy_sum(
        x, w, other, mask, chunk=0
    )
    gradient = jax.grad(lambda x: cross_entropy_sum(x, w, targets, mask, chunk=0))(x)
    assert not np.any(np.asarray(gradient)[~mask])
    assert np.all(np.any(np.asarray(gradient)[mask], axis=-1))


def test_large_logits_stay_finite(arrays):
    x, w, targets, mask = arrays
    total = cross_entropy_sum(1e4 * x, w, targets, mask, chunk=0)
    logits = 1e4 * x.astype(np.float64) @ w.astype(np.float64).T
    top = logits.max(-1)
    nats = top + np.log(np.exp(logits - top[..., None]).sum(-1))
    nats -= np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(total, (nats * mask).sum(), rtol=1e-5)


LATER = np.asarray((0.5, 0.25), np.float32)


def later_reference(x, w, targets, mask):
    """The loss with `LATER` and its derivative by the logits in float64, token by token."""
    total, dlogits = 0.0, np.zeros((B, T, V))
    for row in range(B):
        for t in range(T):
            logits = w.astype(np.float64) @ x[row, t].astype(np.float64)
            softmax = np.exp(logits) / np.exp(logits).sum()
            for later, weight in enumerate((1.0, *LATER)):
                if t + later < T and mask[row, t] and mask[row, t + later]:
                    target = targets[row, t + later]
                    total -= weight * np.log(softmax[target])
                    dlogits[row, t] += weight * (softmax - np.eye(V)[target])
    return total, dlogits


@pytest.mark.parametrize("chunk", [0, 6])
def test_later_tokens_equal_numpy(arrays, chunk):
    x, w, targets, mask = arrays
    total, nats = multi_token_loss(*arrays, LATER, chunk)
    expected, dlogits = later_reference(*arrays)
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    np.testing.assert_allclose(nats, reference(*arrays), rtol=1e-6)  # of the next tokens alone

    def scaled(x, w):
        return 0.25 * multi_token_loss(x, w, targets, mask, LATER, chunk)[0]

    gradients = dlogits @ w, np.einsum("btv,btd->vd", dlogits, x)
    for actual, expected in zip(jax.grad(scaled, argnums=(0, 1))(x, w), gradients, strict=True):
        np.testing.assert_allclose(actual, 0.25 * expected, rtol=1e-5, atol=1e-6)


def test_later_tokens_of_weight_0_change_no_bit(arrays):
    x, w, targets, mask = arrays

    def value_and_grad(weights):
        return jax.value_and_grad(
            lambda x, w: multi_token_loss(x, w, targets, mask, weights, 0)[0], argnums=(0, 1)
        )(x, w)

    for a, b in zip(
        jax.tree.leaves(value_and_grad(np.zeros(2, np.float32))),
        jax.tree.leaves(value_and_grad(np.zeros(0, np.float32))),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def soft_reference(x, w, targets, mask, soft_x, soft_w, share):
    """The loss and its derivative by the logits in float64: targets are mixed distributions."""
    total, dlogits = 0.0, np.zeros((B, T, V))
    for row in range(B):
        for t in range(T):
            logits = w.astype(np.float64) @ x[row, t].astype(np.float64)
            softmax = np.exp(logits) / np.exp(logits).sum()
            other = np.exp(soft_w.astype(np.float64) @ soft_x[row, t].astype(np.float64))
            target = (1 - share) * np.eye(V)[targets[row, t]] + share * other / other.sum()
            total -= mask[row, t] * (target * np.log(softmax)).sum()
            dlogits[row, t] = mask[row, t] * (softmax - target)
    return total, dlogits


@pytest.mark.parametrize(("share", "chunk"), [(0.3, 0), (0.3, 6), (1.0, 6)])
def test_soft_targets_equal_numpy(arrays, share, chunk):
    """Those of another model, wider than this one; the loss of the data is reported as before."""
    x, w, targets, mask = arrays
    rng = np.random.default_rng(1)
    soft_x = rng.normal(size=(B, T, D + 2)).astype(np.float32)
    soft_w = rng.normal(size=(V, D + 2)).astype(np.float32)
    soft, none = SoftTargets(soft_x, soft_w, share), np.zeros(0, np.float32)
    total, nats = multi_token_loss(*arrays, none, chunk, soft)
    expected, dlogits = soft_reference(*arrays, soft_x, soft_w, share)
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    np.testing.assert_allclose(nats, reference(*arrays), rtol=1e-6)

    def scaled(x, w):
        return 0.25 * multi_token_loss(x, w, targets, mask, none, chunk, soft)[0]

    gradients = dlogits @ w, np.einsum("btv,btd->vd", dlogits, x)
    value, actual = jax.value_and_grad(scaled, argnums=(0, 1))(x, w)
    np.testing.assert_allclose(value, 0.25 * expected, rtol=1e-6)
    for one, other in zip(actual, gradients, strict=True):
        np.testing.assert_allclose(one, 0.25 * other, rtol=1e-5, atol=1e-6)
