"""A model tuned on conversations: where it starts, what counts, and that it resumes exactly."""

import copy
import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest
from test_resume import assert_same_bits

from configs import chat as chat_config
from configs.errors import UserError
from configs.validate import validate
from data_pipeline.chat import MARKERS, Chat
from data_pipeline.loader import BatchIterator
from data_pipeline.prepare import prepare_all
from data_pipeline.special_tokens import with_specials
from data_pipeline.subset import training_rows
from data_pipeline.token_store import TOKENIZER
from gptjax.checkpoint import manager
from gptjax.common.workdir import save_config
from gptjax.evaluate.text_loss import evaluate_documents, validation_documents
from gptjax.inference import load_run
from gptjax.model.config import GPTConfig
from gptjax.step import StepFunctions, make_mesh, place_batch
from gptjax.train import init_state, trainer

BUNDLED = Path(__file__).parents[2] / "data_pipeline/shard/conversations.jsonl"


@pytest.fixture(scope="module")
def base_run(session_config, store, initial, tmp_path_factory) -> Path:
    """The workdir of a model that was trained on text."""
    workdir = tmp_path_factory.mktemp("runs") / "base"
    workdir.mkdir()
    (workdir / TOKENIZER).write_bytes((store.path / TOKENIZER).read_bytes())
    manager.save_params(workdir, jax.device_get(initial.params))
    save_config(session_config, workdir)
    return workdir


@pytest.fixture(scope="module")
def tuning(base_run, tmp_path_factory):
    """configs/chat.py on a part of the bundled conversations, for 4 steps."""
    folder = tmp_path_factory.mktemp("talks")
    (folder / "talks.jsonl").write_text("".join(BUNDLED.open().readlines()[:60]))
    config = chat_config.get_config(str(base_run))
    config.allow_cpu = True
    config.data.source = str(folder / "talks.jsonl")
    config.data.cache_dir = str(folder / "stores")
    config.data.prepare_workers = 1
    config.data.val_fraction = 0.2
    config.train.batch_size = 4
    config.train.max_iters = 4
    config.eval.eval_interval = 3
    config.sample.prompts = ()
    config.log.tensorboard = False
    return config


@pytest.fixture(scope="module")
def tuning_steps(tuning):
    """The compiled functions of the run, which all tests share."""
    tokenizer = prepare_all(tuning).tokenizer
    model_config = GPTConfig.from_config(tuning, tokenizer.vocab_size)
    return StepFunctions(tuning, model_config, tokenizer.token_bytes, make_mesh(1))


@pytest.fixture(scope="module")
def batch(tuning):
    stores = prepare_all(tuning)
    batches = BatchIterator(training_rows(tuning, stores), batch_size=4, micro_steps=1)
    return stores.tokenizer, next(batches)


def test_the_configuration(tuning, base_run):
    validate(tuning, n_devices=1)
    assert tuning.workdir == f"{base_run}-chat"
    assert (tuning.init_from, tuning.tokenizer.file) == (str(base_run), f"{base_run}/{TOKENIZER}")
    assert (tuning.model.block_size, tuning.model.n_embd) == (32, 32)
    assert tuning.data.document_mask


def test_a_run_starts_resumes_and_learns(tuning, base_run, tuning_steps, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "StepFunctions", lambda *_: tuning_steps)
    starts = []

    def spy(*args):
        starts.append(jax.device_get(init_state.initial_state(*args)))  # it is donated afterwards
        return init_state.initial_state(*args)

    monkeypatch.setattr(trainer, "initial_state", spy)

    def run(name, max_iters):
        config = copy.deepcopy(tuning)
        config.workdir, config.train.max_iters = str(tmp_path / name), max_iters
        return jax.device_get(trainer.train_and_evaluate(config))

    whole = run("whole", 4)
    assert int(run("broken", 2).step) == 2
    assert_same_bits(run("broken", 4), whole)

    # It starts with the parameters of the text model, and a row more for each marker.
    before = load_run(base_run)
    table, grown = (np.asarray(p["wte"]) for p in (before.params, starts[0].params))
    np.testing.assert_array_equal(grown[:-2], table)
    distance = np.abs(grown[-2:] - table.mean(0))
    assert 0 < distance.max() < 0.1 and np.abs(grown[-2] - grown[-1]).max() > 0
    rest_before, rest_grown = ({**p, "wte": np.zeros(1)} for p in (before.params, starts[0].params))
    assert_same_bits(rest_grown, jax.device_get(rest_before))

    # The loss before the first step is reported, and it falls.
    lines = (tmp_path / "whole/metrics.jsonl").read_text().splitlines()
    losses = {x["step"]: x["val/loss"] for x in map(json.loads, lines) if "val/loss" in x}
    assert list(losses) == [0, 3, 4] and losses[4] < losses[0]

    # It can be opened, and its evaluation is that of the assistant's words.
    loaded = load_run(tmp_path / "whole")
    assert loaded.tokenizer.vocab_size == 514 and loaded.config.data.messages_column == "messages"
    stores = prepare_all(tuning)
    documents = validation_documents(loaded, tmp_path / "whole", stores.path)[""]
    result = evaluate_documents(loaded, documents, is_chat=True)
    counted = Chat(stores.tokenizer).counted
    whole_ids = [documents.read(i, 0, n) for i, n in enumerate(documents.doc_lengths.tolist())]
    assert result["n_tokens"] == sum(int(counted(ids).sum()) for ids in whole_ids)
    assert math.isclose(result["loss"], losses[4], rel_tol=1e-5)


def test_what_the_user_says_has_no_gradient(tuning, tuning_steps, batch):
    """Other targets where the mask is False change no bit of the step."""
    tokenizer, one = batch
    targets, mask = one["targets"], one["loss_mask"]
    assert 0.2 < mask.mean() < 0.8
    start, _ = (tokenizer.specials[name] for name in MARKERS)
    assert not mask[targets == start].any() and not mask[targets == tokenizer.bos_id].any()

    def after(targets):
        placed = place_batch(tuning_steps.batch_sharding, {**one, "targets": targets})
        return jax.device_get(tuning_steps.train_step(tuning_steps.init_state(), placed)[0].params)

    same, other = after(targets), (targets + 7) % 514
    assert_same_bits(after(np.where(mask, targets, other)), same)
    with pytest.raises(AssertionError):
        assert_same_bits(after(np.where(mask, other, targets)), same)


def test_another_tokenizer_is_refused(tuning, tmp_path):
    """One that is not the model's with the markers and nothing else."""
    config = copy.deepcopy(tuning)
    config.workdir = str(tmp_path / "run")
    plain = (Path(tuning.init_from) / TOKENIZER).read_bytes()
    (tmp_path / "other").write_bytes(with_specials(plain, ["<other>"]))
    config.tokenizer.file = str(tmp_path / "other")
    with pytest.raises(UserError, match="another model.*\n.*vocab_size: 512 saved, 515 now"):
        trainer.train_and_evaluate(config)
    assert not (tmp_path / "run/config.json").exists()
