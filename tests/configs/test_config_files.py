"""The files of configs/: the recipe's numbers and claims, and what all files have in common."""

import importlib
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs import base, modern, rtx4070, rtx4070_110m
from configs.validate import leaves, validate

FILES = sorted(
    path.stem
    for path in (Path(__file__).parents[2] / "configs").glob("*.py")
    if "def get_config()" in path.read_text()
)

# The user's own numbers. They change when the user says so, and for no other reason.
RECIPE = {
    "eval.eval_interval": 500,
    "eval.eval_iters": 200,
    "train.log_interval": 50,
    "checkpoint.always_save_checkpoint": True,
    "train.batch_size": 12,
    "train.gradient_accumulation_steps": 40,
    "model.block_size": 1024,
    "model.n_layer": 12,
    "model.n_head": 8,
    "model.n_embd": 512,
    "model.dropout": 0.0,
    "model.bias": False,
    "optim.learning_rate": 6e-4,
    "train.max_iters": 250_000,
    "optim.warmup_iters": 2000,
    "optim.lr_decay_iters": 250_000,
    "optim.min_lr": 6e-5,
    "optim.beta2": 0.99,
    "optim.weight_decay": 0.1,
    "optim.grad_clip": 1.0,
    "tokenizer.vocab_size": 32_768,
    "model.compute_dtype": "bfloat16",
}


def differing(a: ConfigDict, b: ConfigDict) -> set[str]:
    a, b = leaves(a), leaves(b)
    return {name for name in a if a[name] != b[name]}


@pytest.mark.parametrize("name", RECIPE)
def test_the_recipe_is_the_users_number_for_number(name):
    value = leaves(rtx4070.get_config())[name]
    assert value == RECIPE[name]
    assert type(value) is type(RECIPE[name])


def test_the_110m_run_is_the_recipe_at_768():
    small, large = rtx4070.get_config(), rtx4070_110m.get_config()
    assert differing(small, large) == {"workdir", "model.n_embd", "model.n_head"}
    assert (large.model.n_layer, large.model.n_embd) == (12, 768)


def test_the_documented_files_exist():
    documented = {"base", "debug", "quickstart", "rtx4070", "rtx4070_110m", "rtx4070_best"}
    assert documented <= set(FILES)


@pytest.mark.parametrize("file", FILES)
def test_each_file_has_the_leaves_of_base_and_is_valid(file):
    config = importlib.import_module(f"configs.{file}").get_config()
    values, defaults = leaves(config), leaves(base.get_config())
    assert list(values) == list(defaults)
    for name, default in defaults.items():
        assert default is None or type(values[name]) is type(default), name
    validate(config, n_devices=1)


@pytest.mark.parametrize(
    ("changes", "claimed"),
    [
        ({}, True),
        ({"workdir": "elsewhere", "model.attention": "xla", "optim.learning_rate": 1e-4}, True),
        ({"train.max_iters": 240_000}, False),
        ({"train.batch_size": 6}, False),
        ({"model.n_layer": 6}, False),
        ({"model.mlp": "swiglu"}, False),
    ],
)
def test_claims_are_about_the_size_of_the_recipe_only(changes, claimed):
    config = rtx4070.get_config()
    config.update_from_flattened_dict(changes)
    assert rtx4070.claims_of(config) == (rtx4070.CLAIMS if claimed else {})


def test_each_run_has_a_workdir_of_its_own():
    workdirs = [importlib.import_module(f"configs.{f}").get_config().workdir for f in FILES]
    assert len(set(workdirs)) == len(FILES)


def test_the_modern_preset_changes_the_parts_of_the_model_only():
    config = base.get_config()
    modern.apply(config)
    validate(config, n_devices=1)
    assert differing(base.get_config(), config) <= {
        f"model.{part}"
        for part in "norm position qk_norm mlp bias tie_embeddings zero_init".split()
    }
    assert config.model.position == "rope"
