"""The recipe's numbers, what a configuration must satisfy, and the command line."""

import copy
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from ml_collections import ConfigDict

from configs import base, debug, modern, quickstart, rtx4070, rtx4070_110m
from configs.errors import UserError
from configs.validate import leaves, unknown_keys, validate
from gptjax.common.workdir import load_config, save_config
from gptjax.model.precision import compute_dtype
from gptjax.train.data_check import validate_store

ROOT = Path(__file__).parents[2]
FILES = sorted(
    p.stem
    for p in (ROOT / "configs").glob("*.py")
    if p.stem not in ("__init__", "flags", "modern", "sweep", "workdir")
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


def get(config: ConfigDict, name: str):
    for part in name.split("."):
        config = config[part]
    return config


def put(config: ConfigDict, changes: dict) -> ConfigDict:
    for name, value in changes.items():
        *group, leaf = name.split(".")
        (config[group[0]] if group else config)[leaf] = value
    return config


def differing(a: ConfigDict, b: ConfigDict) -> set[str]:
    return {name for name in leaves(a) if get(a, name) != get(b, name)}


# --- the files ---


@pytest.mark.parametrize("name", RECIPE)
def test_the_recipe_is_the_users_number_for_number(name):
    value = get(rtx4070.get_config(), name)
    assert value == RECIPE[name]
    assert type(value) is type(RECIPE[name])


def test_the_110m_run_is_the_recipe_at_768():
    small, large = rtx4070.get_config(), rtx4070_110m.get_config()
    assert differing(small, large) == {"workdir", "model.n_embd", "model.n_head"}
    assert (large.model.n_layer, large.model.n_embd) == (12, 768)


def test_there_are_the_files_that_are_promised():
    promised = {"base", "debug", "quickstart", "rtx4070", "rtx4070_110m", "rtx4070_best"}
    assert promised <= set(FILES)


@pytest.mark.parametrize("file", FILES)
def test_each_file_has_the_leaves_of_base_and_is_valid(file):
    config = importlib.import_module(f"configs.{file}").get_config()
    assert leaves(config) == leaves(base.get_config())
    for name in leaves(config):
        value, default = get(config, name), get(base.get_config(), name)
        assert default is None or type(value) is type(default), name
    validate(config, n_devices=1)


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


# --- validate ---


def problems_of(config: ConfigDict, n_devices: int = 1) -> list[str]:
    with pytest.raises(UserError) as error:
        validate(config, n_devices)
    first, *problems = str(error.value).split("\n  - ")
    count = "1 problem:" if len(problems) == 1 else f"{len(problems)} problems:"
    assert first.endswith(count)
    return problems


POSITIVE = """
    model.block_size model.n_layer model.n_head model.n_embd model.scan_unroll
    train.batch_size train.gradient_accumulation_steps train.max_iters train.log_interval
    eval.eval_interval eval.eval_iters optim.learning_rate optim.lr_decay_iters optim.eps
    tokenizer.vocab_size tokenizer.sample_bytes data.prefetch_batches checkpoint.keep_latest
    mesh.fsdp train.max_epochs train.max_consecutive_skips model.rope_theta
""".split()
NOT_NEGATIVE = """
    optim.min_lr optim.warmup_iters optim.wsd_decay_iters optim.weight_decay optim.grad_clip
    model.loss_chunk data.prepare_workers checkpoint.keep_best sample.max_new_tokens
    sample.temperature sample.top_k train.loss_spike_sigma sample.interval report.interval
    eval.benchmark_interval eval.benchmark_limit model.n_kv_head model.mlp_dim
""".split()
RULES = [
    *((name, {name: 0}, f"{name} = 0(.0)? must be positive") for name in POSITIVE),
    *((name, {name: -1}, f"{name} = -1(.0)? must not be negative") for name in NOT_NEGATIVE),
    ("compute_dtype", {"model.compute_dtype": "float16"}, "auto, float32, bfloat16"),
    ("remat", {"model.remat": "some"}, "model.remat = 'some' must be one of none, dots, full"),
    (
        "on_corrupt",
        {"data.on_corrupt": "skip"},
        "'skip' must be one of stop, keep_before",
    ),
    ("norm", {"model.norm": "batchnorm"}, "must be one of layernorm, rmsnorm"),
    ("position", {"model.position": "alibi"}, "must be one of learned, rope"),
    ("mlp", {"model.mlp": "relu"}, "must be one of gelu, swiglu, relu2"),
    ("shared heads", {"model.n_kv_head": 3}, "n_kv_head = 3 must divide model.n_head = 2"),
    ("bias of RMSNorm", {"model.norm": "rmsnorm", "model.bias": True}, "RMSNorm has no bias"),
    (
        "odd heads that turn",
        {"model.position": "rope", "model.n_embd": 30},
        "n_head = 15. must be of an even width",
    ),
    ("heads", {"model.n_head": 3}, "n_embd = 32 must be a multiple of model.n_head = 3"),
    ("dropout of all", {"model.dropout": 1.0}, r"dropout = 1.0 must be in \[0, 1\)"),
    ("dropout below 0", {"model.dropout": -0.1}, r"dropout = -0.1 must be in \[0, 1\)"),
    ("beta1", {"optim.beta1": 1.0}, r"beta1 = 1.0 must be in \[0, 1\)"),
    ("beta2", {"optim.beta2": -0.5}, r"beta2 = -0.5 must be in \[0, 1\)"),
    ("no val", {"data.val_fraction": 0.0}, r"val_fraction = 0.0 must be in \(0, 1\)"),
    ("only val", {"data.val_fraction": 1.0}, r"val_fraction = 1.0 must be in \(0, 1\)"),
    ("top_p of 0", {"sample.top_p": 0.0}, r"top_p = 0.0 must be in \(0, 1\]"),
    ("top_p over 1", {"sample.top_p": 1.1}, r"top_p = 1.1 must be in \(0, 1\]"),
    ("min_lr", {"optim.min_lr": 0.5}, "min_lr = 0.5 exceeds optim.learning_rate = 0.01"),
    ("warmup", {"optim.warmup_iters": 20}, "warmup_iters = 20 must be below optim.lr_decay_iters"),
    ("loss_chunk", {"model.loss_chunk": 100}, "loss_chunk = 100 must divide the 128 tokens"),
    ("hours", {"train.max_hours": 0.0}, "max_hours = 0.0 must be positive"),
    ("seed", {"seed": -1}, "seed = -1 must not be negative"),
    ("schedule", {"optim.schedule": "linear"}, "'linear' must be one of cosine, wsd"),
    (
        "too short for wsd",
        {"optim.schedule": "wsd", "optim.warmup_iters": 10, "optim.wsd_decay_iters": 11},
        r"warmup_iters \+ optim.wsd_decay_iters = 21 exceed train.max_iters = 20",
    ),
    (
        "samples of nothing",
        {"sample.interval": 5, "sample.prompts": ()},
        "sample.interval = 5 needs sample.prompts",
    ),
    ("no path", {"eval.benchmarks": ("",)}, "eval.benchmarks names an empty path"),
    ("vocab", {"tokenizer.vocab_size": 65_537}, "vocab_size = 65,537 exceeds 65,536"),
]


@pytest.mark.parametrize(("changes", "message"), [r[1:] for r in RULES], ids=[r[0] for r in RULES])
def test_each_rule_is_enforced(changes, message):
    problems = problems_of(put(debug.get_config(), changes))
    assert [p for p in problems if re.search(message, p)]
    # Nothing else is wrong, except where one mistake breaks two rules.
    breaks_two = {"optim.learning_rate", "optim.lr_decay_iters"} & changes.keys()
    assert len(problems) == (2 if breaks_two else 1), problems


def test_devices_must_share_a_batch_and_the_parameters():
    config = debug.get_config()  # a batch of 4
    validate(config, n_devices=4)
    assert "batch_size = 4 must be a multiple of the 3 devices" in problems_of(config, 3)[0]
    config.mesh.fsdp = 2
    validate(config, n_devices=4)
    config.train.batch_size = 12
    config.mesh.fsdp = 3
    (problem,) = problems_of(config, 4)
    assert "mesh.fsdp = 3 must divide the 4 devices" in problem


def test_what_is_just_allowed():
    changes = {
        "model.loss_chunk": 64,
        "optim.warmup_iters": 0,
        "optim.min_lr": 1e-2,
        "sample.top_p": 1.0,
        "sample.temperature": 0.0,
        "tokenizer.vocab_size": 65_536,
        "optim.grad_clip": 0.0,
        "optim.schedule": "wsd",
        "optim.wsd_decay_iters": 20,
        "optim.lr_decay_iters": 1,  # of no use there
        "checkpoint.keep_best": 0,
    }
    validate(put(debug.get_config(), changes), n_devices=1)


def test_all_contradictions_are_told_at_once():
    config = put(
        debug.get_config(),
        {
            "model.n_head": 5,
            "model.remat": "everything",
            "optim.min_lr": 1.0,
            "train.max_iters": 0,
            "model.loss_chunk": 7,
        },
    )
    config.model.n_hed = 4  # a sixth: a key that base.py lacks
    problems = problems_of(config)
    assert len(problems) == 6
    for words in ("n_head = 5", "'everything'", "min_lr = 1.0", "max_iters = 0", "chunk = 7"):
        assert len([p for p in problems if words in p]) == 1, words
    assert "model.n_hed is not a key" in problems[0] and "model.n_head" in problems[0]


def test_data_smaller_than_a_row_is_told_of_both_splits(debug_config, store):
    config = copy.deepcopy(debug_config)
    n_val, n_train = (store.split(name).n_tokens for name in ("val", "train"))
    config.model.block_size = n_val
    validate_store(config, store)
    config.model.block_size = n_val + 1
    with pytest.raises(UserError, match=f"{n_val:,} tokens of the val split") as error:
        validate_store(config, store)
    assert "train split" not in str(error.value)
    config.model.block_size = n_train + 1
    with pytest.raises(UserError, match=f"(?s){n_train:,} tokens of the train split.*val split"):
        validate_store(config, store)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("optim.learnin_rate", "optim.learning_rate"),
        ("model.n_hed", "model.n_head"),
        ("n_layer", "model.n_layer"),  # the group forgotten
        ("optim.batch_size", "train.batch_size"),  # the group mistaken
        ("zzzzzz", None),
    ],
)
def test_an_unknown_key_names_its_nearest_match(key, nearest):
    (problem,) = unknown_keys([key])
    assert problem.startswith(f"{key} is not a key of configs/base.py")
    assert ("did you mean" in problem) == (nearest is not None)
    assert nearest is None or f"(did you mean {nearest}?)" in problem


def test_compute_dtype_follows_the_backend(monkeypatch):
    config = base.get_config()
    assert compute_dtype(config) == "float32"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert compute_dtype(config) == "bfloat16"
    config.model.compute_dtype = "float32"
    assert compute_dtype(config) == "float32"


# --- the command line ---


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def test_misspelt_keys_are_named_with_their_nearest_match():
    result = run(
        "-m",
        "gptjax.main",
        "--config=configs/debug.py",
        "--config.optim.learnin_rate=1",
        "--config.model.n_hed=3",
    )
    assert result.returncode == 2
    assert "optim.learnin_rate is not a key" in result.stderr
    assert "did you mean optim.learning_rate?" in result.stderr
    assert "model.n_hed is not a key" in result.stderr
    assert "did you mean model.n_head?" in result.stderr
    assert "Traceback" not in result.stderr and len(result.stderr.splitlines()) == 2


PRINT_CONFIG = """
from configs import cli
cli.define_config()
cli.run(lambda config: print(config.to_json()))
"""

OVERRIDES = {  # one leaf of each type, as it is typed and as it arrives
    "workdir": ("elsewhere/a b", "elsewhere/a b"),
    "seed": ("7", 7),
    "optim.learning_rate": ("3e-4", 3e-4),
    "optim.grad_clip": ("2", 2.0),  # a whole number for a float
    "model.bias": ("True", True),
    "checkpoint.always_save_checkpoint": ("false", False),
    "sample.prompts": ("('One ', 'Two ')", ["One ", "Two "]),
    "train.max_hours": ("2.5", 2.5),  # None in base.py
}


def test_a_leaf_of_each_type_can_be_overridden():
    arguments = [f"--config.{name}={typed}" for name, (typed, _) in OVERRIDES.items()]
    result = run("-c", PRINT_CONFIG, "--config=configs/rtx4070.py", *arguments)
    assert result.returncode == 0, result.stderr
    found = ConfigDict(json.loads(result.stdout))
    for name, (_, expected) in OVERRIDES.items():
        assert get(found, name) == expected and type(get(found, name)) is type(expected), name
    others = set(leaves(found)) - OVERRIDES.keys()
    expected = ConfigDict(json.loads(rtx4070.get_config().to_json()))
    assert {name for name in others if get(found, name) != get(expected, name)} == set()
    # No type is left out.
    types = {type(get(base.get_config(), name)) for name in leaves(base.get_config())}
    assert types == {type(get(base.get_config(), name)) for name in OVERRIDES}


def test_a_file_that_is_not_there_is_told_with_those_that_are():
    result = run("-c", PRINT_CONFIG, "--config=configs/rtx4090.py", "--config.sed=1")
    assert result.returncode == 2
    assert "configs/rtx4090.py is no file" in result.stderr and "rtx4070.py" in result.stderr
    assert "sed is not a key" in result.stderr  # both mistakes at once


# --- config.json ---


def test_round_trip_through_the_workdir(tmp_path):
    workdir = tmp_path / "deep" / "run"
    config = quickstart.get_config()
    config.sample.prompts = ("One \u2581", "\U0001f600")
    config.train.max_hours = 1.5
    config.optim.learning_rate = 0.1 + 0.2  # not one of the short decimal numbers
    save_config(config, workdir)
    loaded = load_config(workdir)
    assert loaded.to_dict() == config.to_dict()
    for name in leaves(config):
        assert type(get(loaded, name)) is type(get(config, name)), name
    assert [p.name for p in workdir.iterdir()] == ["config.json"]


def test_an_unset_leaf_stays_unset_and_can_be_set(tmp_path):
    save_config(base.get_config(), tmp_path)
    loaded = load_config(tmp_path)
    assert loaded.train.max_hours is None
    loaded.train.max_hours = 2.0
    with pytest.raises(TypeError):
        loaded.train.max_hours = "two"


def test_a_workdir_that_is_none_is_told(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json.*gptjax\.main"):
        load_config(tmp_path)


def test_a_config_of_another_version_is_told(tmp_path):
    config = base.get_config()
    config.model.n_experts = 8
    save_config(config, tmp_path)
    with pytest.raises(UserError, match=r"another version: model\.n_experts"):
        load_config(tmp_path)


def test_a_config_that_lacks_keys_has_their_defaults_and_it_is_told(tmp_path, caplog):
    config = quickstart.get_config()
    config.model.dropout = 0.25
    save_config(config, tmp_path)
    with caplog.at_level("INFO"):
        assert load_config(tmp_path).to_dict() == config.to_dict()
    assert not caplog.messages
    saved = json.loads((tmp_path / "config.json").read_text())
    del saved["model"]["dropout"], saved["claims"]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    with caplog.at_level("INFO"):
        loaded = load_config(tmp_path)
    default = base.get_config()
    config.model.dropout, config.claims = default.model.dropout, default.claims
    assert loaded.to_dict() == config.to_dict()
    (message,) = caplog.messages
    missing = [*(f"claims.{key}" for key in default.claims), "model.dropout"]
    assert f"is older than {', '.join(missing)}: " in message


@pytest.mark.parametrize("text", ["", '{"model": {', "[1, 2]", '{"seed": "one"}', '{"model": 3}'])
def test_a_damaged_config_is_told(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        load_config(tmp_path)
