"""The moving average of the weights: its closed form, and that evaluation uses it."""

import copy
import functools
import json
import logging
from pathlib import Path

import jax
import numpy as np
import pytest

from data_pipeline.token_store import TOKENIZER
from gptjax.checkpoint import manager
from gptjax.common.workdir import save_config
from gptjax.inference.load import load_run
from gptjax.model.config import GPTConfig
from gptjax.step.sharding import make_mesh
from gptjax.step.train_step import StepFunctions
from gptjax.train import callbacks, trainer
from gptjax.train.init_state import initial_state
from gptjax.train.validation import Validation

DECAY = 0.4  # less than (1 + t) / (10 + t) from t = 5 on


@pytest.fixture(scope="module")
def config(debug_config):
    config = copy.deepcopy(debug_config)
    config.optim.ema_decay = DECAY
    config.train.max_iters = 6
    config.eval.eval_interval = 3
    config.sample.prompts = ("The ",)
    return config


@pytest.fixture(scope="module")
def steps(config, store):
    model_config = GPTConfig.from_config(config, store.tokenizer.vocab_size)
    mesh = make_mesh(1, jax.devices()[:1])
    return StepFunctions(config, model_config, store.tokenizer.token_bytes, mesh)


def test_it_is_the_closed_form(steps):
    """A sum of all parameters so far, the initial ones included; one term an update, not more."""
    state = steps.init_state()
    rng = np.random.default_rng(0)
    seen = [jax.device_get(state.params)]
    assert bits(state.params) == bits(state.ema_params)
    for t in range(8):
        tokens = rng.integers(0, 500, (2, 4, 33), dtype=np.int32)
        mask = np.ones((2, 4, 32), bool)
        batch = {"inputs": tokens[..., :-1], "targets": tokens[..., 1:], "loss_mask": mask}
        state, _ = steps.train_step(state, batch)
        seen.append(jax.device_get(state.params))
        keeps = np.minimum(DECAY, (1 + np.arange(t + 1)) / (10 + np.arange(t + 1)))
        later = np.append(np.cumprod(keeps[::-1])[::-1], 1.0)  # what is kept of each until now
        weights = later * np.append(1.0, 1 - keeps)
        assert np.isclose(weights.sum(), 1)
        expected = jax.tree.map(
            lambda *p, w=weights: np.tensordot(w, np.stack(p).astype(np.float64), 1), *seen
        )
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, atol=2e-7), state.ema_params, expected
        )
    assert (keeps[:5] < DECAY).all() and keeps[6] == DECAY


def bits(tree):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(jax.device_get(tree))]


def test_it_is_evaluated_sampled_and_loaded(config, store, steps, tmp_path, caplog, monkeypatch):
    config = copy.deepcopy(config)
    config.workdir = str(tmp_path)
    config.sample.temperature = 0.0
    monkeypatch.setattr(trainer, "StepFunctions", lambda *_: steps)
    sampled = []

    class Recorded(callbacks.Sampler):
        def __init__(self, model_config, params):
            sampled.append(params)
            super().__init__(model_config, params)

    monkeypatch.setattr(callbacks, "Sampler", Recorded)
    state = trainer.train_and_evaluate(config)
    assert bits(state.params) != bits(state.ema_params)
    assert bits(sampled) == bits(state.ema_params)

    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    val_losses = {line["step"]: line["val/loss"] for line in lines if "val/loss" in line}
    validation = Validation(config, store, steps)
    assert val_losses[6] == validation.run(state.ema_params)["loss"]
    assert val_losses[6] != validation.run(state.params)["loss"]

    with caplog.at_level(logging.INFO):
        run = load_run(tmp_path)
    best = min(val_losses, key=val_losses.get)
    assert run.step == best and "checkpoints/6: the moving average of its weights" in caplog.text
    assert best == 6 and bits(run.params) == bits(state.ema_params)
    folder = Path(config.workdir) / "checkpoints" / str(best)
    assert {p.name for p in folder.iterdir() if p.is_dir()} >= {"ema_params", "params", "opt_state"}


def test_a_run_that_starts_from_another_averages_from_there(config, store, steps, tmp_path):
    config = copy.deepcopy(config)
    config.workdir = str(tmp_path)
    other = steps.init_state()
    manager.save_params(tmp_path, jax.tree.map(lambda p: p + 1, other.params))
    save_config(config, tmp_path)
    (tmp_path / TOKENIZER).write_bytes((store.path / TOKENIZER).read_bytes())
    config.init_from = str(tmp_path)
    state = initial_state(config, steps, store)
    assert bits(state.params) == bits(jax.tree.map(lambda p: p + 1, other.params))
    assert bits(state.ema_params) == bits(state.params)
    leaves = jax.tree.leaves((state.params, state.ema_params))
    assert len({x.unsafe_buffer_pointer() for x in leaves}) == len(leaves)  # a step takes them over
