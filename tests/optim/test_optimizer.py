"""The optimizer against a NumPy AdamW written from the papers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import optimizer_step, tiny_gpt

from configs import rtx4070
from gptjax.model import gpt
from gptjax.optim.optimizer import Optimizer, decay_mask
from gptjax.optim.schedules import decay_start, learning_rate_schedule, rewarm_notice, schedules


@pytest.fixture
def optim():
    optim = rtx4070.get_config().optim
    optim.learning_rate, optim.min_lr = 1e-2, 1e-3
    optim.warmup_iters, optim.lr_decay_iters = 5, 15
    return optim


def closed_form(optim, step):
    """Learning rate of the update after `step` updates."""
    if step < optim.warmup_iters:
        return optim.learning_rate * (step + 1) / (optim.warmup_iters + 1)
    done = (step - optim.warmup_iters) / (optim.lr_decay_iters - optim.warmup_iters)
    cosine = 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    return optim.min_lr + cosine * (optim.learning_rate - optim.min_lr)


def test_schedule_is_the_closed_form(optim):
    rate = learning_rate_schedule(optim, 30)
    for step in range(30):
        np.testing.assert_allclose(rate(step), closed_form(optim, step), rtol=1e-6)
    assert float(rate(5)) == np.float32(1e-2)  # the peak, after warmup_iters updates
    assert float(rate(15)) == float(rate(1000)) == np.float32(1e-3)  # the floor, kept


def cycles_closed_form(optim, step, max_iters):
    """The same with `rewarm_at`: each cycle rises from the last rate of the one before."""
    starts = [0, *optim.rewarm_at]
    ends = [optim.lr_decay_iters, *optim.rewarm_at[1:], max_iters]
    before = 0.0
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):

        def rate(step, start=start, end=end, before=before):
            into, warmup = step - start, optim.warmup_iters
            if into < warmup:
                return before + (optim.learning_rate - before) * (into + 1) / (warmup + 1)
            done = min((into - warmup) / (end - start - warmup), 1.0)
            return optim.min_lr + 0.5 * (1 + math.cos(math.pi * done)) * (
                optim.learning_rate - optim.min_lr
            )

        if i == len(starts) - 1 or step < starts[i + 1]:
            return rate(step)
        before = rate(starts[i + 1])


@pytest.mark.parametrize("rewarm_at", [(), (15,), (10,), (20, 35), (10, 20, 30)])
@pytest.mark.parametrize("warmup", [5, 0])
def test_a_rewarmed_cosine_is_the_closed_form(optim, rewarm_at, warmup):
    optim.rewarm_at, optim.warmup_iters = rewarm_at, warmup
    rate = learning_rate_schedule(optim, 45)
    steps = np.arange(50)
    expected = [cycles_closed_form(optim, s, 45) for s in steps]
    np.testing.assert_allclose(jax.jit(rate)(steps), expected, rtol=1e-6)
    if rewarm_at:
        optim.rewarm_at = ()  # the steps before have the rates of a run without
        before = learning_rate_schedule(optim, rewarm_at[0])(steps[: rewarm_at[0]])
        np.testing.assert_array_equal(rate(steps)[: rewarm_at[0]], before)


def test_the_cost_of_a_longer_run_is_counted(optim):
    assert rewarm_notice(optim, 45) == ""
    optim.rewarm_at = (10,)
    text = rewarm_notice(optim, 45)
    rates = [cycles_closed_form(optim, s, 45) for s in range(9, 45)]
    higher = sum(rate > rates[0] for rate in rates)
    assert 10 < higher < 35
    assert f"from {rates[0]:.2g} to 0.01 in 5 steps, and falls to 0.001 at step 45" in text
    assert f"higher than before for {higher} of the 35 steps" in text


def wsd_closed_form(optim, step, max_iters):
    """Learning rate of the update after `step` updates: Haegele et al. 2024, 1 - sqrt or a line."""
    if step < optim.warmup_iters:
        return optim.learning_rate * (step + 1) / (optim.warmup_iters + 1)
    into_decay = step - (max_iters - optim.wsd_decay_iters)
    if into_decay <= 0:
        return optim.learning_rate
    progress = min(into_decay / optim.wsd_decay_iters, 1.0)
    share = 1 - (progress if optim.wsd_fall == "linear" else math.sqrt(progress))
    return optim.min_lr + share * (optim.learning_rate - optim.min_lr)


@pytest.mark.parametrize("fall", ["sqrt", "linear"])
@pytest.mark.parametrize(("warmup", "decay"), [(5, 8), (0, 8), (5, 0), (5, 35), (0, 0), (40, 0)])
def test_wsd_is_the_closed_form(optim, warmup, decay, fall):
    optim.wsd_fall = fall
    optim.schedule, optim.warmup_iters, optim.wsd_decay_iters = "wsd", warmup, decay
    rate = learning_rate_schedule(optim, 40)
    steps = np.arange(40)
    expected = [wsd_closed_form(optim, s, 40) for s in steps]
    np.testing.assert_allclose([rate(s) for s in steps], expected, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(rate)(steps), expected, rtol=1e-6)
    if decay:
        assert decay_start(optim, 40) == 40 - decay
        assert float(rate(40 - decay)) == np.float32(1e-2)  # still the peak
        assert float(rate(40)) == float(rate(1000)) == np.float32(1e-3)  # the floor, kept


def test_a_longer_wsd_run_begins_as_the_shorter_one(optim):
    optim.schedule, optim.wsd_decay_iters = "wsd", 8
    short, long = (learning_rate_schedule(optim, n) for n in (40, 60))
    steps = np.arange(60)
    same = np.asarray(short(steps)) == np.asarray(long(steps))
    assert same[:33].all() and not same[33:].any()


def test_schedule_of_the_recipe():
    rate = learning_rate_schedule(rtx4070.get_config().optim, 250_000)
    for step, expected in ((0, 6e-4 / 2001), (2000, 6e-4), (126_000, 3.3e-4), (250_000, 6e-5)):
        # float32 ramps are exact to a part of the peak, not of their small first values.
        np.testing.assert_allclose(rate(step), expected, rtol=0, atol=1e-6 * 6e-4)


@pytest.mark.parametrize("micro_steps", [1, 4])
def test_trajectory_equals_numpy_over_20_updates(optim, micro_steps):
    rng = np.random.default_rng(0)
    params = {
        "kernel": rng.normal(size=(2, 3, 4)),  # stacked layers
        "scale": rng.normal(size=(2, 3)),  # stacked vectors: no decay, although they have two axes
        "wte": rng.normal(size=(5, 3)),
    }
    optimizer = Optimizer(optim, micro_steps, max_iters=20)
    ours = jax.tree.map(jnp.float32, params)
    state = optimizer.init(ours)
    update = optimizer_step(optimizer)

    theirs = {name: p.astype(np.float64) for name, p in params.items()}
    m = {name: np.zeros_like(p) for name, p in theirs.items()}
    v = {name: np.zeros_like(p) for name, p in theirs.items()}
    clipped = 0
    for step in range(20):
        # Sizes on both sides of the clipping norm of 1.
        size = 0.02 if step % 3 else 3.0
        grads = [
            {name: size * rng.normal(size=p.shape) for name, p in params.items()}
            for _ in range(micro_steps)
        ]
        ours, state = update(ours, state, grads)

        mean = {name: np.mean([g[name] for g in grads], axis=0) for name in params}
        norm = math.sqrt(sum(float(np.sum(g**2)) for g in mean.values()))
        np.testing.assert_allclose(optax.tree.get(state, "grad_norm"), norm, rtol=1e-5)
        clipped += norm > optim.grad_clip
        rate = closed_form(optim, step)
        for name, p in theirs.items():
            g = mean[name] / max(1.0, norm / optim.grad_clip)
            m[name] = optim.beta1 * m[name] + (1 - optim.beta1) * g
            v[name] = optim.beta2 * v[name] + (1 - optim.beta2) * g**2
            m_hat = m[name] / (1 - optim.beta1 ** (step + 1))
            v_hat = v[name] / (1 - optim.beta2 ** (step + 1))
            decay = 0.0 if name == "scale" else optim.weight_decay
            p -= rate * (m_hat / (np.sqrt(v_hat) + optim.eps) + decay * p)
        for name, p in theirs.items():
            np.testing.assert_allclose(ours[name], p, atol=2e-6, err_msg=f"{name}, update {step}")
    assert 0 < clipped < 20, "both sides of the clip must be tested"


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_an_untied_head_has_a_rate_of_its_own(optim, optimizer):
    optim.optimizer, optim.weight_decay, optim.grad_clip = optimizer, 0.3, 0.0
    rng = np.random.default_rng(5)
    params = {name: rng.normal(size=(7, 3)) for name in ("wte", "lm_head")}
    grads = {name: rng.normal(size=(7, 3)) for name in params}
    state = Optimizer(optim, 1, 30).init(params)
    optim.head_learning_rate = 0.04
    own = Optimizer(optim, 1, 30)
    assert jax.tree.structure(own.init(params)) == jax.tree.structure(state)  # a checkpoint's
    after, _ = own.update(params, state, grads, loss=jnp.float32(1.0))
    for name, peak in (("wte", 0.01), ("lm_head", 0.04)):
        p, g = params[name], grads[name]
        # Adam's first step is along the signs; the rate is that of the first of 5 + 1 steps.
        expected = p - peak / 6 * (g / (np.abs(g) + optim.eps) + 0.3 * p)
        np.testing.assert_allclose(after[name], expected, rtol=1e-5)
    rates = schedules(optim, 30)
    np.testing.assert_allclose(rates["head_learning_rate"](9), 4 * rates["learning_rate"](9))


def test_every_parameter_of_the_model_has_a_decay_group():
    model_config = tiny_gpt()
    params = jax.eval_shape(lambda: gpt.init(model_config, jax.random.key(0)))
    mask = decay_mask(params)
    decayed = {
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, value in jax.tree_util.tree_leaves_with_path(mask)
        if value
    }
    linear = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert decayed == {"wte", "wpe", *(f"blocks.{name}.kernel" for name in linear)}
    assert jax.tree.structure(mask) == jax.tree.structure(params)


def test_a_parameter_without_a_group_fails():
    with pytest.raises(ValueError, match="gamma"):
        decay_mask({"blocks": {"gamma": jnp.zeros(3)}})
