"""Muon against NumPy, written from Jordan's note and Moonlight's paper, in float64."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import optimizer_step, tiny_gpt
from ml_collections import ConfigDict

from configs import rtx4070
from gptjax.model import gpt
from gptjax.optim.muon import join_qkv, split_qkv
from gptjax.optim.optimizer import Optimizer, param_labels
from gptjax.optim.schedules import weight_decay

KERNELS = ("attn/c_attn", "attn/c_proj", "mlp/c_fc", "mlp/c_proj")
N_UPDATES = 4


@pytest.fixture
def optim():
    optim = rtx4070.get_config().optim
    optim.optimizer = "muon"
    optim.learning_rate, optim.min_lr, optim.muon_learning_rate = 1e-2, 1e-3, 3e-2
    optim.warmup_iters, optim.lr_decay_iters = 1, N_UPDATES
    return optim


def make_params(rng, head_columns=24):
    """Two layers of width 8; `head_columns`: those of q, k and v together."""
    shapes = {
        "wte": (16, 8),
        "ln_f": {"scale": (8,)},
        "blocks": {
            "ln_1": {"scale": (2, 8)},
            "attn": {"c_attn": {"kernel": (2, 8, head_columns)}, "c_proj": {"kernel": (2, 8, 8)}},
            "mlp": {"c_fc": {"kernel": (2, 8, 32)}, "c_proj": {"kernel": (2, 32, 8)}},
        },
    }
    return jax.tree.map(lambda s: rng.normal(size=s), shapes, is_leaf=lambda s: type(s) is tuple)


def leaf(tree, name):
    for key in name.split("/"):
        tree = tree[key]
    return tree


def newton_schulz(m, coefficients=((3.4445, -4.7750, 2.0315),) * 5):
    """Five quintic steps on one matrix, wide or tall."""
    if m.shape[0] > m.shape[1]:
        return newton_schulz(m.T, coefficients).T
    x = m / np.sqrt(np.sum(m**2))
    for a, b, c in coefficients:
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def scale_of(shape, scale):
    """The factor of an orthogonal d_in x d_out update."""
    return {"rms": 0.2 * np.sqrt(max(shape)), "spectral": max(1, shape[1] / shape[0]) ** 0.5}[scale]


def numpy_muon(p, grads, rates, decays, momentum=0.95, scale="rms"):
    """Updates one matrix by each of `grads`; returns it."""
    mean = np.zeros_like(p)
    for t, (g, rate, decay) in enumerate(zip(grads, rates, decays, strict=True), 1):
        mean = momentum * mean + (1 - momentum) * g
        # Nesterov: what the mean will be if this gradient comes again, both parts bias-corrected.
        ahead = momentum * mean / (1 - momentum ** (t + 1))
        ahead = ahead + (1 - momentum) * g / (1 - momentum**t)
        p = p - rate * (scale_of(p.shape, scale) * newton_schulz(ahead) + decay * p)
    return p


def rates_of(optim, peak):
    """Warm-up of one step, then half a cosine."""
    done = (np.arange(N_UPDATES) - 1) / (N_UPDATES - 1)
    cosine = 0.5 * (1 + np.cos(np.pi * done))
    share = 0.1 + 0.9 * cosine  # min_lr is a tenth of the peak
    share[0] = 0.5
    return peak * share


@functools.cache
def compiled(optim_json, micro_steps):
    optim = ConfigDict(json.loads(optim_json))
    optimizer = Optimizer(optim, micro_steps, max_iters=N_UPDATES)
    return optimizer.init, optimizer_step(optimizer)


def train(optim, params, grads, micro_steps=1):
    """Returns the parameters after each update; `grads` holds one tree for each micro-step."""
    init, update = compiled(optim.to_json(), micro_steps)
    ours = jax.tree.map(jnp.float32, params)
    state, after_updates = init(ours), []
    for first in range(0, len(grads), micro_steps):
        ours, state = update(ours, state, grads[first : first + micro_steps])
        after_updates.append(ours)
    assert int(optax.tree.get(state, "skipped")) == 0
    return after_updates


@pytest.mark.parametrize(
    ("micro_steps", "head_columns", "schedule", "scale"),
    # 16 columns: half as many key and value heads
    [(1, 24, "constant", "rms"), (2, 16, "linear", "spectral")],
)
def test_trajectory_equals_numpy(optim, micro_steps, head_columns, schedule, scale):
    optim.muon_scale = scale
    optim.weight_decay, optim.weight_decay_end, optim.weight_decay_schedule = 0.5, 2.5, schedule
    rng = np.random.default_rng(0)
    params = make_params(rng, head_columns)
    sizes = [3.0 if i // micro_steps % 2 else 0.003 for i in range(N_UPDATES * micro_steps)]
    grads = [jax.tree.map(lambda p, s=s: s * rng.normal(size=p.shape), params) for s in sizes]
    after_updates = train(optim, params, grads, micro_steps)

    rates = rates_of(optim, optim.muon_learning_rate)
    decays = np.full(N_UPDATES, 0.5)
    if schedule == "linear":
        decays = 0.5 + 2.0 * np.arange(N_UPDATES) / N_UPDATES
    means = []
    for i in range(0, len(grads), micro_steps):
        mean = jax.tree.map(lambda *g: np.mean(g, axis=0), *grads[i : i + micro_steps])
        norm = np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(mean)))  # of all the gradients
        means.append(jax.tree.map(lambda g, n=norm: g / max(1.0, n / optim.grad_clip), mean))
    for name in KERNELS:
        name = f"blocks/{name}/kernel"
        bounds = [0, leaf(params, name).shape[2]]
        if "c_attn" in name:
            bounds = [0, 8, 8 + (head_columns - 8) // 2, head_columns]
        for updates in (1, 3):
            ours = np.asarray(leaf(after_updates[updates - 1], name))
            for layer in range(2):
                for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
                    theirs = numpy_muon(
                        leaf(params, name)[layer, :, start:stop],
                        [leaf(g, name)[layer, :, start:stop] for g in means[:updates]],
                        rates[:updates],
                        decays[:updates],
                        scale=scale,
                    )
                    np.testing.assert_allclose(ours[layer, :, start:stop], theirs, atol=5e-6)


def test_all_else_is_adamw_bit_for_bit(optim):
    rng = np.random.default_rng(1)
    params = make_params(rng)
    grads = [jax.tree.map(lambda p: rng.normal(size=p.shape), params) for _ in range(N_UPDATES)]
    with_muon = train(optim, params, grads)
    optim.optimizer = "adamw"
    without = train(optim, params, grads)
    for a, b in zip(with_muon, without, strict=True):
        for name in ("wte", "ln_f/scale", "blocks/ln_1/scale"):
            assert np.asarray(leaf(a, name)).tobytes() == np.asarray(leaf(b, name)).tobytes()
        for name in KERNELS:
            assert not np.array_equal(*(leaf(x, f"blocks/{name}/kernel") for x in (a, b)))


def conditioned(rng, shape):
    """A stack of two matrices with singular values from 0.05 to 1, far from equal."""
    u, _, v = np.linalg.svd(rng.normal(size=(2, *shape)), full_matrices=False)
    return (u * np.geomspace(0.05, 1, min(shape))) @ v


@pytest.mark.parametrize("scale", ["rms", "spectral"])
def test_singular_values_of_an_update_are_near_one(optim, scale):
    optim.weight_decay, optim.warmup_iters, optim.muon_scale = 0.0, 0, scale
    rng = np.random.default_rng(2)
    params = make_params(rng)
    grads = jax.tree.map(np.zeros_like, params)
    blocks = grads["blocks"]
    blocks["attn"]["c_attn"]["kernel"] = np.concatenate(
        [size * conditioned(rng, (8, 8)) for size in (1, 1e-3, 1e3)], axis=2
    )
    for part, shape in ((blocks["attn"]["c_proj"], (8, 8)), (blocks["mlp"]["c_fc"], (8, 32))):
        part["kernel"] = conditioned(rng, shape)
    blocks["mlp"]["c_proj"]["kernel"] = conditioned(rng, (32, 8))
    params = jax.tree.map(np.zeros_like, params)  # so that what is left of them is the update
    (trained,) = train(optim, params, [grads])
    for name in KERNELS:
        update = np.asarray(leaf(trained, f"blocks/{name}/kernel"), np.float64)
        matrices = np.split(update, 3, axis=2) if "c_attn" in name else [update]
        for matrix in matrices:
            factor = optim.muon_learning_rate * scale_of(matrix.shape[1:], scale)
            values = np.linalg.svd(matrix / factor, compute_uv=False)
            assert np.all((values > 0.65) & (values < 1.25)), (name, values)
            if scale == "rms":
                rms = np.sqrt(np.mean(matrix**2))  # that of the paper, whatever the shape
                assert 0.7 < rms / (0.2 * optim.muon_learning_rate) < 1.15, name


def test_queries_keys_and_values_do_not_touch_each_other(optim):
    optim.grad_clip = 0.0  # it couples all gradients
    rng = np.random.default_rng(3)
    params = make_params(rng)
    grads = jax.tree.map(lambda p: rng.normal(size=p.shape), params)
    (first,) = train(optim, params, [grads])
    grads["blocks"]["attn"]["c_attn"]["kernel"][:, :, 16:] *= rng.normal(size=(2, 8, 8))
    (second,) = train(optim, params, [grads])
    a, b = (np.asarray(x["blocks"]["attn"]["c_attn"]["kernel"]) for x in (first, second))
    assert np.array_equal(a[:, :, :16], b[:, :, :16])
    assert np.mean(a[:, :, 16:] != b[:, :, 16:]) > 0.9


def test_joining_is_the_inverse_of_splitting():
    tree = jax.tree.map(jnp.float32, make_params(np.random.default_rng(0), head_columns=12))
    parts = split_qkv(tree)["blocks"]["attn"]["c_attn"]["kernel"]
    assert {name: part.shape[2] for name, part in parts.items()} == {"q": 8, "k": 2, "v": 2}
    again = join_qkv(split_qkv(tree))
    assert jax.tree.structure(again) == jax.tree.structure(tree)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(tree), strict=True):
        np.testing.assert_array_equal(a, b)


def test_every_parameter_of_the_model_is_in_one_group(optim):
    model_config = tiny_gpt()
    params = gpt.init(model_config, jax.random.key(0))
    state = Optimizer(optim, 1, 10).init(params)
    moments = {"muon": optax.tree.get_all_with_path(state, "mu")}
    sizes = [sum(x.size for x in jax.tree.leaves(mu)) for _, mu in moments["muon"]]
    total = sum(x.size for x in jax.tree.leaves(params))
    assert sum(sizes) == total  # one first moment each: none is missing or updated twice
    (nu,) = [x for _, x in optax.tree.get_all_with_path(state, "nu") if jax.tree.leaves(x)]
    assert sum(x.size for x in jax.tree.leaves(nu)) == total - 2 * 12 * 16 * 16
    named = jax.tree_util.tree_leaves_with_path(param_labels(params))
    in_muon = {jax.tree_util.keystr(p, simple=True, separator="/") for p, g in named if g == "muon"}
    assert in_muon == {f"blocks/{name}/kernel" for name in KERNELS}
    assert {group for _, group in named} == {"muon", "adamw"}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"blocks": {"gamma": jnp.zeros((2, 3, 3))}}, "gamma"),
        ({"blocks": {"c_fc": {"kernel": jnp.zeros((3, 3))}}}, "c_fc.*2 axes"),
    ],
)
def test_a_parameter_without_a_group_fails(optim, wrong, words):
    with pytest.raises(ValueError, match=words):
        Optimizer(optim, 1, 10).init(wrong)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("end", [0.0, 3.0])
def test_weight_decay_is_its_closed_form(optim, optimizer, end):
    """Without gradients, a matrix only shrinks, by the product of rate and decay of each step."""
    optim.optimizer, optim.weight_decay = optimizer, 0.4
    optim.weight_decay_schedule, optim.weight_decay_end = "linear", end
    decay = weight_decay(optim, N_UPDATES)
    steps = np.arange(N_UPDATES)
    expected = 0.4 + (end - 0.4) * steps / N_UPDATES
    np.testing.assert_allclose(decay(steps), expected, rtol=1e-6)
    np.testing.assert_allclose([decay(N_UPDATES), decay(999)], end, rtol=1e-6)

    params = make_params(np.random.default_rng(4))
    after_updates = train(optim, params, [jax.tree.map(np.zeros_like, params)] * N_UPDATES)
    for name in ("wte", "blocks/mlp/c_fc/kernel", "ln_f/scale"):
        hidden = "kernel" in name and optimizer == "muon"
        peak = optim.muon_learning_rate if hidden else optim.learning_rate
        kept = np.cumprod(1 - rates_of(optim, peak) * expected)
        for ours, share in zip(after_updates, kept, strict=True):
            share = 1.0 if "scale" in name else share
            np.testing.assert_allclose(leaf(ours, name), share * leaf(params, name), rtol=1e-6)
