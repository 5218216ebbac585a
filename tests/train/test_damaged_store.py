"""A damaged store, and one whose ids are no tokens, end a run before a checkpoint is saved."""

import shutil
import time
from pathlib import Path

import pytest
from helpers import flip_bit, with_ids
from test_faults import poison_steps

from configs.errors import DataError, UserError
from data_pipeline.token_store import TokenStore
from gptjax.train import trainer


@pytest.fixture
def config(config, store, steps, tmp_path, monkeypatch):
    """The run with a copy of the store, and compiled steps."""
    config.data.cache_dir = str(tmp_path / "stores")
    shutil.copytree(store.path.parent, config.data.cache_dir)
    monkeypatch.setattr(trainer, "StepFunctions", lambda *_: steps)
    return config


@pytest.fixture
def folder(config, store):
    return Path(config.data.cache_dir) / store.path.name


@pytest.fixture
def slow_verification(monkeypatch):
    real = TokenStore.verify
    monkeypatch.setattr(TokenStore, "verify", lambda store: time.sleep(0.5) or real(store))


def saved(config):
    return list((Path(config.workdir) / "checkpoints").iterdir())


@pytest.mark.usefixtures("slow_verification")
@pytest.mark.parametrize(
    ("name", "eval_interval"),
    [("00000-train.tokens", 2), ("00000-val.tokens", 2), ("00000-val.rows", 100)],
)
def test_a_flipped_bit_ends_the_run_before_it_saves(config, folder, name, eval_interval):
    flip_bit(folder / name, 100, 0)  # the step is as good as with the other token
    config.eval.eval_interval = eval_interval
    with pytest.raises(DataError, match=f"{name}: the contents have changed"):
        trainer.train_and_evaluate(config)
    assert saved(config) == []


@pytest.mark.usefixtures("slow_verification")
def test_ids_that_are_no_tokens_are_named_instead_of_the_steps_they_spoil(config, folder):
    with_ids(folder, "train", [600] * 100_000)
    config.train.max_consecutive_skips = 2
    with pytest.raises(DataError, match="train.tokens: it holds the token 600"):
        trainer.train_and_evaluate(config)
    assert saved(config) == []


def test_a_damage_that_is_found_between_evaluations_ends_the_run_at_once(config, folder):
    flip_bit(folder / "00000-train.tokens", 100, 0)
    config.train.max_iters = config.eval.eval_interval = 1_000_000
    with pytest.raises(DataError, match="train.tokens: the contents have changed"):
        trainer.train_and_evaluate(config)


def test_a_run_of_which_every_step_was_skipped_is_an_error(config, store, monkeypatch):
    poison_steps(monkeypatch, config, store, set(range(1, 9)))
    with pytest.raises(UserError, match=r"all 8 steps were skipped.*nothing was saved.*learning_r"):
        trainer.train_and_evaluate(config)
    assert saved(config) == []
