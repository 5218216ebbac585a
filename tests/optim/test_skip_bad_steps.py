"""A step with a bad loss or gradient changes nothing but counters, in any micro-step."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gptjax.model.config import GPTConfig
from gptjax.optim.skip_bad_steps import WINDOW, skip_bad_steps
from gptjax.step.sharding import make_mesh
from gptjax.step.train_step import StepFunctions

NAN_LOSS, INF_LOSS, NAN_GRADIENT = 509, 510, 511  # tokens that poison their micro-step
POISONS = {"nan loss": NAN_LOSS, "inf loss": INF_LOSS, "nan gradient": NAN_GRADIENT}
COUNTERS = ("step", "skipped", "in_a_row", "gradient_step")


class PoisonedSteps(StepFunctions):
    """The real step, with a loss that some tokens poison."""

    def _loss(self, params, micro, *others):
        total, nats = super()._loss(params, micro, *others)
        has = {token: jnp.any(micro["inputs"] == token) for token in POISONS.values()}
        bad = jnp.where(has[NAN_LOSS], jnp.nan, jnp.where(has[INF_LOSS], jnp.inf, 0.0))
        zero = 0 * jnp.sum(params["wte"])
        root = jnp.sqrt(jnp.where(has[NAN_GRADIENT], zero, 1))  # at 0, the gradient is NaN
        return total + bad + jnp.where(has[NAN_GRADIENT], root, 0), nats + bad


CASES = [(1, "adamw"), (3, "adamw"), (3, "muon")]


@pytest.fixture(scope="module", params=[*CASES, pytest.param((1, "muon"), marks=pytest.mark.slow)])
def poisoned(request, debug_config):
    """(steps, micro-steps), by accumulation and optimizer; with Muon, also a moving average."""
    config = copy.deepcopy(debug_config)
    micro_steps, config.optim.optimizer = request.param
    config.optim.ema_decay = 0.5 if config.optim.optimizer == "muon" else 0.0
    config.train.gradient_accumulation_steps = micro_steps
    model_config = GPTConfig.from_config(config, 512)
    mesh = make_mesh(1, jax.devices()[:1])
    return PoisonedSteps(config, model_config, np.ones(512, np.int32), mesh), micro_steps


def make_batch(micro_steps, seed=0, poison=None, at=0):
    tokens = np.random.default_rng(seed).integers(0, 500, (micro_steps, 4, 33), dtype=np.int32)
    if poison is not None:
        tokens[at, 1, 5] = poison
    mask = np.ones((micro_steps, 4, 32), bool)
    return {"inputs": tokens[..., :-1], "targets": tokens[..., 1:], "loss_mask": mask}


def bits(state):
    """The bytes of each leaf by its path, without the counters of steps."""
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(state))
    named = {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}
    return {name: b for name, b in named.items() if not name.endswith(COUNTERS)}


@pytest.mark.parametrize("poison", POISONS)
@pytest.mark.parametrize("at", ["first", "last"])
def test_a_bad_step_changes_counters_only(poisoned, poison, at):
    steps, micro_steps = poisoned
    state = steps.init_state()
    for seed in range(3):
        state, _ = steps.train_step(state, make_batch(micro_steps, seed))
    before, step = bits(state), int(state.step)
    index = 0 if at == "first" else micro_steps - 1
    bad = make_batch(micro_steps, 9, POISONS[poison], index)
    state, metrics = steps.train_step(state, bad)
    assert bits(state) == before
    assert int(state.step) == step + 1
    assert int(metrics["skipped"]) == int(metrics["skipped_in_a_row"]) == 1
    finite = np.isfinite(metrics["nats"]) and np.isfinite(metrics["grad_norm"])
    assert not finite
    expected = [i == index and poison != "nan gradient" for i in range(micro_steps)]
    np.testing.assert_array_equal(~np.isfinite(metrics["nats_A"]), expected)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(jax.device_get(state)))


def test_training_continues_as_without_the_bad_batch(poisoned):
    steps, micro_steps = poisoned
    state, other = steps.init_state(), steps.init_state()
    for seed in range(4):
        state, metrics = steps.train_step(state, make_batch(micro_steps, seed))
        other, _ = steps.train_step(other, make_batch(micro_steps, seed))
        if seed == 1:
            for poison in POISONS.values():
                state, bad = steps.train_step(state, make_batch(micro_steps, 7, poison))
            assert int(bad["skipped_in_a_row"]) == 3
    assert bits(state) == bits(other)
    assert (int(metrics["skipped"]), int(metrics["skipped_in_a_row"])) == (3, 0)
    assert int(state.step) == int(other.step) + 3
    # The schedule does not count skipped updates.
    assert float(metrics["learning_rate"]) == float(steps._schedules["learning_rate"](3))
    assert steps.train_step._cache_size() == 1


def naive_spikes(losses, sigmas):
    """Which losses are skipped, in float64 and with lists."""
    window, skipped = [], []
    for loss in losses:
        limit = np.inf
        if len(window) >= WINDOW // 2:
            last = window[-WINDOW:]
            limit = np.mean(last) + sigmas * np.std(last)
        if np.isfinite(loss):
            window.append(min(loss, limit))
        skipped.append(not np.isfinite(loss) or loss > limit)
    return skipped


def skipped_by_loss(losses, sigmas):
    optimizer = skip_bad_steps(optax.sgd(1.0), sigmas)
    params = {"w": jnp.zeros(2)}
    update = jax.jit(lambda state, loss: optimizer.update(params, state, params, loss=loss))
    state, skipped = optimizer.init(params), []
    for loss in losses:
        _, state = update(state, jnp.float32(loss))
        skipped.append(int(state.in_a_row) > 0)
    return skipped, state


def test_spikes_are_those_of_numpy():
    rng = np.random.default_rng(0)
    losses = 3 + 3 * np.exp(-np.arange(400) / 80) + 0.05 * rng.normal(size=400)
    losses[[5, 150, 300]] += 4  # the first comes before there is anything to compare with
    losses[[20, 200]] = np.nan, np.inf
    losses[350:] += 4  # a level that has risen for good
    expected = naive_spikes(losses, 6.0)
    skipped, state = skipped_by_loss(losses, 6.0)
    assert skipped == expected
    assert not expected[5]
    assert all(expected[i] for i in (20, 150, 200, 300, 350))
    assert not any(expected[370:])  # accepted in the end
    assert int(state.skipped) == sum(expected)


def test_a_spike_needs_half_a_window_to_compare_with():
    for n, is_spike in ((WINDOW // 2 - 1, False), (WINDOW // 2, True)):
        skipped, _ = skipped_by_loss([3.0] * n + [4.0], 6.0)
        assert skipped == [False] * n + [is_spike]


def test_spikes_are_accepted_by_default():
    losses = [3.0] * 100 + [1e6, 3.0, np.nan]
    skipped, _ = skipped_by_loss(losses, 0.0)
    assert skipped == [False] * 102 + [True]


def test_zero_updates_keep_negative_zeros():
    optimizer = skip_bad_steps(optax.sgd(1.0), 0.0)
    params = {"w": jnp.array([-0.0, 0.0, 1.0])}
    updates, _ = optimizer.update(params, optimizer.init(params), params, loss=jnp.float32(np.nan))
    kept = optax.apply_updates(params, updates)["w"]
    assert np.asarray(kept).tobytes() == np.asarray(params["w"]).tobytes()


def test_a_gradient_whose_norm_overflows_is_skipped():
    optimizer = skip_bad_steps(optax.sgd(1.0), 0.0)
    params = {"w": jnp.full(4, 1e30)}
    _, state = optimizer.update(params, optimizer.init(params), params, loss=jnp.float32(1))
    assert int(state.skipped) == 1
