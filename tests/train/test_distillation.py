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
from gptjax.common.workdir import save_config
from gptjax.inference import load_run
from gptjax.model import hidden_states, unembedding
from gptjax.model.flops import count_params, flops_per_token
from gptjax.plan import step_cost
from gptjax.plan.memory import estimate
from gptjax.step import StepFunctions, make_mesh, teacher_model
from gptjax.train import trainer
from gptjax.train.distillation import load_teacher

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
    return trained(plain, plain.workdir, plain.seed)


def trained(config, workdir, seed):
    config = copy.deepcopy(config)
    config.workdir, config.seed = str(workdir), seed  # another seed is no other program to compile
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
    batch["loss_mask"] = np.ones((2, 4, 32), bool)
    gradients, sums = jax.jit(steps._sharded_loss.gradients, static_argnums=(0, 6))(
        *(steps._optimizer, state.params, state.opt_state.acc_grads, None, batch),
        *(jnp.zeros(0), 32, run.params),
    )
    for actual, leaf in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(actual, leaf, rtol=0, atol=1e-6)
    of_data = jax.jit(functools.partial(naive, share=0.0))(state.params)
    reported = np.sum(sums["nats_A"]) / sums["n_targets"]
    np.testing.assert_allclose(reported, of_data, rtol=1e-6)  # of the data alone
    with pytest.raises(ValueError, match="where train.teacher is set"):
        steps.train_step(state, batch, None, None)

    alone = flops_per_token(model_config)
    forward = dataclasses.replace(run.model_config, block_size=32)
    assert flops_per_token(model_config, steps.teacher) == alone + flops_per_token(forward) // 3


def test_a_student_resumes_bit_for_bit_and_with_its_teacher_only(taught, plain, teacher, tmp_path):
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

    edited = tmp_path / "edited"
    shutil.copytree(teacher, edited)
    text = (edited / "config.json").read_text()
    (edited / "config.json").write_text(text.replace('"norm_eps": 0.0', '"norm_eps": 0.01'))
    for changes, words in (
        ({"teacher": ""}, "None now"),
        ({"teacher": trained(plain, tmp_path / "retrained", 5)}, r"train\.teacher\.hash"),
        ({"teacher": str(edited)}, r"train\.teacher\.hash"),
        ({"teacher_weight": 0.75}, r"train\.teacher\.weight: 0\.25 saved, 0\.75 now"),
    ):
        other = copy.deepcopy(stopped)
        other.train.update(changes)
        with pytest.raises(UserError, match=words) as refusal:
            trainer.train_and_evaluate(other)
        assert f"--config.train.teacher={teacher}" in str(refusal.value)
    stopped.train.teacher = str(tmp_path / "moved")  # the same teacher elsewhere
    shutil.copytree(teacher, stopped.train.teacher)
    rest = trainer.train_and_evaluate(stopped)
    for a, b in zip(jax.tree.leaves(rest), jax.tree.leaves(whole), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def untrained(config, folder):
    """A workdir with a configuration, and no checkpoint."""
    workdir = folder / "untrained"
    save_config(config, workdir)
    return str(workdir)


def test_a_teacher_that_cannot_teach_is_refused(taught, tmp_path):
    itself = os.path.join(os.path.dirname(taught.workdir), "..", tmp_path.name, "taught")
    for changes, words in (
        ({"teacher": str(tmp_path)}, f"train.teacher = {tmp_path}: .* is not the workdir"),
        ({"teacher": untrained(taught, tmp_path)}, "has no checkpoint yet"),
        ({"teacher": itself}, "is this run's workdir"),
        ({"teacher_weight": 0.0}, r"teacher_weight = 0.0 must be in \(0, 1\]"),
        ({"teacher_weight": 1.5}, r"teacher_weight = 1.5 must be in \(0, 1\]"),
    ):
        config = copy.deepcopy(taught)
        config.train.update(changes)
        with pytest.raises(UserError, match=words):
            trainer.train_and_evaluate(config)
    longer = copy.deepcopy(taught)
    longer.model.block_size = 64
    with pytest.raises(UserError, match="rows of 32 tokens"):
        trainer.train_and_evaluate(longer)
    taught.tokenizer.vocab_size = 400
    with pytest.raises(UserError, match="another tokenizer"):
        trainer.train_and_evaluate(taught)
    assert not os.path.exists(taught.workdir)


def test_the_parameters_have_the_compute_dtype_and_one_hash(taught, store):
    """A resumed run may change the dtype."""
    loaded = {}
    for dtype in ("float32", "bfloat16"):
        taught.model.compute_dtype = dtype
        model_config = trainer.GPTConfig.from_config(taught, store.tokenizer.vocab_size)
        mesh = make_mesh(1)
        steps = StepFunctions(taught, model_config, store.tokenizer.token_bytes, mesh)
        loaded[dtype] = load_teacher(taught, steps, store, mesh)
        (params,) = loaded[dtype].params
        assert {str(x.dtype) for x in jax.tree.leaves(params)} == {dtype}
    assert loaded["float32"].hash == loaded["bfloat16"].hash


def test_the_plan_counts_the_teacher(taught, plain, store):
    """Its parameters, the FLOPs of its forward pass, and nothing of it that the layers keep."""
    vocab_size = store.tokenizer.vocab_size
    model_config = trainer.GPTConfig.from_config(taught, vocab_size)
    teacher = teacher_model(taught, vocab_size)
    with_teacher, alone = (step_cost.analyze(c, model_config) for c in (taught, plain))
    assert (with_teacher.teacher, alone.teacher) == (teacher, None)
    memory = [
        estimate(c, model_config, cost, 1).state
        for c, cost in ((taught, with_teacher), (plain, alone))
    ]
    assert memory[0] - memory[1] == 4 * count_params(teacher)[0]
    assert with_teacher.kept_bytes == alone.kept_bytes
    tokens = 2 * 4 * 32
    forward = with_teacher.flops - alone.flops
    assert forward == pytest.approx(tokens * flops_per_token(teacher) / 3, rel=1e-6)
