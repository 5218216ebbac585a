"""The training step: accumulation, learning, counts, and that it compiles once."""

import copy
import dataclasses
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from data_pipeline.loader import BatchIterator
from data_pipeline.packing import PackedRows
from gptjax.metrics.aggregate import average
from gptjax.model import hidden_states, unembedding
from gptjax.model.config import GPTConfig
from gptjax.step import train_step
from gptjax.step.sharding import make_mesh
from gptjax.step.train_step import StepFunctions

V = 512


def make_steps(config, vocab_size=V):
    model_config = GPTConfig.from_config(config, vocab_size)
    token_bytes = np.arange(vocab_size, dtype=np.int32) % 5
    return StepFunctions(config, model_config, token_bytes, make_mesh(1, jax.devices()[:1]))


@pytest.fixture(scope="module")
def config(debug_config):
    config = copy.deepcopy(debug_config)
    config.optim.lr_decay_iters = 200
    return config


@pytest.fixture(scope="module")
def steps(config):
    return make_steps(config)


def random_batch(config, micro_steps, batch_size, seed=0):
    rng = np.random.default_rng(seed)
    shape = (micro_steps, batch_size, config.model.block_size)
    tokens = rng.integers(0, V, (*shape[:-1], shape[-1] + 1), dtype=np.int32)
    mask = np.ones(shape, bool)
    return {"inputs": tokens[..., :-1], "targets": tokens[..., 1:], "loss_mask": mask}


def test_micro_batches_equal_one_large_batch(config):
    config = copy.deepcopy(config)
    config.optim.eps = 1e-3  # else Adam amplifies the rounding of gradients near zero to full steps
    large_config = copy.deepcopy(config)
    large_config.train.gradient_accumulation_steps = 1
    large_config.train.batch_size = 8
    small, large = make_steps(config), make_steps(large_config)
    small_state, large_state = small.init_state(), large.init_state()
    for step in range(4):
        batch = random_batch(config, 2, 4, seed=step)
        one = {name: a.reshape(1, 8, -1) for name, a in batch.items()}
        small_state, small_metrics = small.train_step(small_state, batch)
        large_state, large_metrics = large.train_step(large_state, one)
        for name in ("nats", "grad_norm", "n_targets", "n_bytes", "param_norm"):
            np.testing.assert_allclose(small_metrics[name], large_metrics[name], rtol=1e-6)
    for a, b in zip(
        jax.tree.leaves(small_state.params), jax.tree.leaves(large_state.params), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


def test_shorter_rows_are_those_that_the_rows_are_cut_into(config, steps):
    """Bit for bit the step on a batch that was cut before; of the same tokens, the same number."""
    cutting = make_steps(config)  # for `steps` compiles once
    batch = random_batch(config, 2, 4)
    short = {name: a.reshape(2, 16, -1) for name, a in batch.items()}
    cut, expected = (
        cutting.train_step(steps.init_state(), batch, 8),
        cutting.train_step(steps.init_state(), short, 8),
    )
    whole = steps.train_step(steps.init_state(), batch)
    for a, b in zip(jax.tree.leaves(cut), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)
    assert cut[1]["n_targets"] == whole[1]["n_targets"]
    assert cut[1]["nats"] != whole[1]["nats"]  # less of each row is seen


def test_later_tokens_count_until_their_steps_are_over(config):
    """Their gradient is that of the loss with weights by hand; the metrics are of next tokens."""
    config = copy.deepcopy(config)
    config.optim.grad_clip = 0.0
    config.train.gradient_accumulation_steps, config.train.batch_size = 1, 8
    (later := copy.deepcopy(config)).train.update(later_tokens=(0.5,), later_tokens_iters=2)
    plain, steps = make_steps(config), make_steps(later)
    batch = random_batch(config, 1, 8)
    state = plain.init_state()

    @jax.jit
    def norm(weight):
        def loss(params):
            x_BTD = hidden_states(plain.model_config, params, batch["inputs"][0])
            logits = x_BTD @ unembedding(params).T
            log_p = jax.nn.log_softmax(logits)
            targets = batch["targets"][0][..., None]
            next_ = -jnp.sum(jnp.take_along_axis(log_p, targets, -1))
            second = -jnp.sum(jnp.take_along_axis(log_p[:, :-1], targets[:, 1:], -1))
            return (next_ + weight * second) / batch["inputs"].size

        return optax.tree.norm(jax.grad(loss)(state.params))

    for done, weight in ((0, 0.5), (1, 0.25), (2, 0.0), (5, 0.0)):
        at = dataclasses.replace(steps.init_state(), step=jnp.asarray(done, jnp.int32))
        same = dataclasses.replace(plain.init_state(), step=jnp.asarray(done, jnp.int32))
        _, metrics = steps.train_step(at, batch)
        np.testing.assert_allclose(metrics["grad_norm"], norm(weight), rtol=1e-5)
        _, without = plain.train_step(same, batch)
        np.testing.assert_allclose(metrics["nats"], without["nats"], rtol=1e-6)


def test_the_loss_of_a_memorisable_batch_falls_to_0(config, steps):
    state = steps.init_state()
    batch = random_batch(config, 2, 4)
    losses = []
    for _ in range(150):
        state, metrics = steps.train_step(state, batch)
        losses.append(float(metrics["nats"]) / float(metrics["n_targets"]))
    assert abs(losses[0] - np.log(V)) < 0.3  # at the start every token is about as likely
    assert losses[-1] < 0.1
    assert int(state.step) == 150


def test_compiles_once_over_real_batches(steps, store):
    rows = PackedRows(store.split("train"), block_size=32, seed=1, bos_id=1, segments=False)
    batches = BatchIterator(rows, batch_size=4, micro_steps=2)
    state = steps.init_state()
    for _ in range(4):
        state, _ = steps.train_step(state, next(batches))
    batches.close()
    assert steps.train_step._cache_size() == 1


def test_counts_are_those_of_numpy(config, steps):
    batch = random_batch(config, 2, 4)
    batch["loss_mask"] = np.random.default_rng(1).random(batch["targets"].shape) < 0.5
    _, metrics = steps.train_step(steps.init_state(), batch)
    kept = batch["targets"][batch["loss_mask"]]
    assert int(metrics["n_targets"]) == kept.size
    assert int(metrics["n_bytes"]) == int(np.sum(kept % 5))
    assert average([metrics])["loss"] == pytest.approx(float(metrics["nats"]) / kept.size)


def test_grad_norm_is_that_of_the_whole_batch_before_clipping(config, steps):
    batch = random_batch(config, 2, 4)
    state = steps.init_state()

    def mean_loss(params):
        micros = [{name: a[i] for name, a in batch.items()} for i in range(2)]
        nats = [steps._loss(params, micro, None, jnp.zeros(0))[0] for micro in micros]
        return sum(nats) / batch["targets"].size

    grads = jax.device_get(jax.jit(jax.grad(mean_loss))(state.params))
    expected = np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in jax.tree.leaves(grads)))
    _, metrics = steps.train_step(state, batch)
    np.testing.assert_allclose(metrics["grad_norm"], expected, rtol=1e-5)


def test_targets_that_are_masked_out_change_nothing(config, steps):
    batch = random_batch(config, 2, 4)
    batch["loss_mask"][:, :, 20:] = False
    other = copy.deepcopy(batch)
    other["targets"][:, :, 20:] = 3
    a, _ = steps.train_step(steps.init_state(), batch)
    b, _ = steps.train_step(steps.init_state(), other)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def test_a_token_weighs_the_same_next_to_padding(config, steps):
    """Half of the rows masked out: half the gradient, not the same one over half the tokens."""
    row = random_batch(config, 1, 1)
    batch = {name: np.tile(a, (2, 4, 1)) for name, a in row.items()}
    _, full = steps.train_step(steps.init_state(), batch)
    batch["loss_mask"] = batch["loss_mask"].copy()
    batch["loss_mask"][:, :2] = False
    _, half = steps.train_step(steps.init_state(), batch)
    np.testing.assert_allclose(half["grad_norm"], full["grad_norm"] / 2, rtol=1e-5)


def test_the_seed_decides_the_state(config, steps):
    def bits(state):
        return [np.asarray(x).tobytes() for x in jax.tree.leaves(state)]

    assert bits(steps.init_state()) == bits(make_steps(config).init_state())
    other = copy.deepcopy(config)
    other.seed = 1
    assert bits(steps.init_state().params) != bits(make_steps(other).init_state().params)


@pytest.fixture(scope="module")
def dropped(config):
    """The functions of the same model with dropout, and a batch whose two micro-steps are equal."""
    config = copy.deepcopy(config)
    config.model.dropout = 0.5
    batch = {name: np.tile(a, (2, 1, 1)) for name, a in random_batch(config, 1, 4).items()}
    return make_steps(config), batch


def test_each_step_and_micro_step_has_its_own_dropout(steps, dropped):
    steps_with_dropout, batch = dropped
    _, metrics = steps.train_step(steps.init_state(), batch)
    assert metrics["nats_A"][0] == metrics["nats_A"][1]
    nats = []
    for step in range(3):
        state = dataclasses.replace(steps_with_dropout.init_state(), step=np.int32(step))
        _, metrics = steps_with_dropout.train_step(state, batch)
        nats += metrics["nats_A"].tolist()
    assert len(set(nats)) == 6


def test_evaluation_has_no_dropout(steps, dropped):
    steps_with_dropout, batch = dropped
    batch = {name: a[:1] for name, a in batch.items()}
    params = steps.init_state().params
    expected = steps.eval_step(params, batch)
    assert steps_with_dropout.eval_step(params, batch)["nats"] == expected["nats"]


def test_deterministic_reaches_the_compiler_of_each_function(config, steps, monkeypatch):
    """With an option that XLA does not know in its place, no function compiles."""
    config = copy.deepcopy(config)
    state, batch = steps.init_state(), random_batch(config, 2, 4)
    monkeypatch.setattr(
        train_step, "compiler_options", lambda *, deterministic: {"no_such_option": deterministic}
    )
    config.deterministic = True
    functions = make_steps(config)
    for call in (
        functions.init_state,
        lambda: functions.train_step(state, batch),
        lambda: functions.eval_step(state.params, {name: a[:1] for name, a in batch.items()}),
    ):
        with pytest.raises(jax.errors.JaxRuntimeError, match="'no_such_option'"):
            call()


SHARDED = """
import jax, numpy as np, sys
jax.config.update("jax_num_cpu_devices", 4)
from configs import debug
from gptjax.model.config import GPTConfig
from gptjax.step.sharding import make_mesh, place_batch
from gptjax.step.train_step import StepFunctions

config = debug.get_config()
config.optim.optimizer = sys.argv[1]
config.optim.ema_decay = 0.5 if sys.argv[1] == "muon" else 0.0
config.optim.eps = 1e-3  # else Adam amplifies the rounding of gradients near zero to full steps
model_config = GPTConfig.from_config(config, 512)
rng = np.random.default_rng(0)
tokens = rng.integers(0, 512, (2, 4, 33), dtype=np.int32)
mask = np.ones((2, 4, 32), bool)
batch = {"inputs": tokens[..., :-1], "targets": tokens[..., 1:], "loss_mask": mask}
results = []
# Newton-Schulz steps amplify rounding in small singular values by at most 3.4445^5.
tolerance = 1e-6 if sys.argv[1] == "adamw" else 1e-5
for fsdp, devices in ((1, jax.devices()[:1]), (2, jax.devices()), (4, jax.devices())):
    steps = StepFunctions(config, model_config, np.ones(512, np.int32), make_mesh(fsdp, devices))
    state = steps.init_state()
    for _ in range(3):
        state, metrics = steps.train_step(state, place_batch(steps.batch_sharding, batch))
    assert steps.train_step._cache_size() == 1
    wte = state.params["wte"]
    assert wte.addressable_shards[0].data.size == wte.size // fsdp, (fsdp, wte.sharding)
    arrays = jax.tree.leaves(state)  # moments and accumulated gradients are split like parameters
    held = sum(a.addressable_shards[0].data.size for a in arrays)
    assert held < 1.02 / fsdp * sum(a.size for a in arrays), (fsdp, held)
    results.append(jax.device_get((state.eval_params, state.params, metrics)))
for other in results[1:]:
    for a, b in zip(jax.tree.leaves(results[0]), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
"""


@pytest.mark.slow  # test_sharded_step.py has the same comparison in fewer seconds
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_one_two_and_four_devices_agree(optimizer):
    result = subprocess.run(
        [sys.executable, "-c", SHARDED, optimizer],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
