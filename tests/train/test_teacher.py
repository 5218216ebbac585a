"""A run that learns from another one's predictions, too: `train.teacher`."""

import copy
import dataclasses
import functools
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.errors import UserError
from configs.validate import validate
from gptjax.inference import load_run
from gptjax.model import hidden_states, unembedding
from gptjax.model.flops import flops_per_token
from gptjax.step import StepFunctions, make_mesh
from gptjax.train import trainer

STEPS = 4


@pytest.fixture(scope="module")
def plain(debug_config, tmp_path_factory):
    """A short run of the debug configuration, without a teacher."""
    config = copy.deepcopy(debug_config)
    config.train.max_iters = config.optim.lr_decay_iters = STEPS
    config.train.log_interval, config.eval.eval_interval = 1, 2
    config.sample.prompts = ()
    config.workdir = str(tmp_path_factory.mktemp("teacher") / "run")
    return config


@pytest.fixture(scope="module")
def teacher(plain):
    """The workdir of a teacher with a layer more, and wider than its student."""
    config = copy.deepcopy(plain)
    config.model.n_layer, config.model.n_embd = 3, 48
    config.optim.learning_rate = 3e-2
    trainer.train_and_evaluate(config)
    return config.workdir


@pytest.fixture
def taught(plain, teacher, tmp_path):
    config = copy.deepcopy(plain)
    config.workdir, config.train.teacher = str(tmp_path / "taught"), teacher
    config.train.teacher_weight = 0.25
    return config


def naive_loss(params, model_config, batch, other, share):
    """The mean loss of the data and of the teacher over a batch [A, B, T], from whole logits."""

    def log_softmax(model_config, params, tokens_BT):
        x_BTD = hidden_states(model_config, params, tokens_BT)
        return jax.nn.log_softmax(x_BTD @ unembedding(params).T)

    total = 0.0
    for tokens_BT, targets_BT in zip(batch["inputs"], batch["targets"], strict=True):
        log_p_BTV = log_softmax(model_config, params, tokens_BT)
        q_BTV = jnp.exp(log_softmax(*other, tokens_BT))
        of_data = -jnp.take_along_axis(log_p_BTV, targets_BT[..., None], -1).mean()
        total += (1 - share) * of_data - share * (q_BTV * log_p_BTV).sum(-1).mean()
    return total / len(batch["inputs"])


def test_the_gradient_is_that_of_both_losses(taught, store):
    run = load_run(taught.train.teacher)
    vocab_size = store.tokenizer.vocab_size
    model_config = trainer.GPTConfig.from_config(taught, vocab_size)
    steps = StepFunctions(taught, model_config, store.tokenizer.token_bytes, make_mesh(1))
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, vocab_size, (2, 4, 33), dtype=np.int32)
    batch = {"inputs": tokens[..., :-1], "targets": tokens[..., 1:]}
    state = steps.init_state()
    other = run.model_config, run.params
    naive = functools.partial(
        naive_loss, model_config=model_config, batch=batch, other=other, share=0.25
    )
    expected = jax.jit(jax.grad(naive))(state.params)
    norm = np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(expected)))
    batch["loss_mask"] = np.ones((2, 4, 32), bool)
    _, metrics = steps.train_step(state, batch, None, run.params)
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)

    alone = flops_per_token(model_config)
    forward = dataclasses.replace(run.model_config, block_size=32)
    assert flops_per_token(model_config, steps.teacher) == alone + flops_per_token(forward) // 3


def test_a_student_resumes_bit_for_bit_and_with_its_teacher_only(taught, teacher, tmp_path):
    whole = trainer.train_and_evaluate(taught)
    stopped = copy.deepcopy(taught)
    stopped.workdir = str(tmp_path / "stopped")
    add = trainer.TrainingLog.add

    def add_and_stop(log, step, **others):
        add(log, step, **others)
        if step.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.TrainingLog, "add", add_and_stop)
        half = trainer.train_and_evaluate(stopped)
    assert 2 <= int(half.step) < STEPS

    other = copy.deepcopy(stopped)
    for changes in ({"teacher": ""}, {"teacher_weight": 0.75}):
        other.train.update(changes)
        with pytest.raises(UserError, match=r"train\.teacher"):
            trainer.train_and_evaluate(other)
    stopped.train.teacher = str(tmp_path / "moved")  # the same teacher elsewhere
    shutil.copytree(teacher, stopped.train.teacher)
    rest = trainer.train_and_evaluate(stopped)
    for a, b in zip(jax.tree.leaves(rest), jax.tree.leaves(whole), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_a_teacher_that_cannot_teach_is_refused(taught, tmp_path):
    for folder, words in ((str(tmp_path), "is not the workdir"), (taught.workdir, "another run")):
        config = copy.deepcopy(taught)
        config.train.teacher = folder
        with pytest.raises(UserError, match=words):
            trainer.train_and_evaluate(config)
    taught.train.teacher_weight = 0.0
    with pytest.raises(UserError, match=r"teacher_weight = 0.0 must be in \(0, 1\]"):
        validate(taught, 1)
    taught.train.teacher_weight = 0.5
    longer = copy.deepcopy(taught)
    longer.model.block_size = 64
    with pytest.raises(UserError, match="rows of 32 tokens"):
        trainer.train_and_evaluate(longer)
    taught.tokenizer.vocab_size = 400
    with pytest.raises(UserError, match="another tokenizer"):
        trainer.train_and_evaluate(taught)
    assert not os.path.exists(taught.workdir)
