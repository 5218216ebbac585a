"""config.json of a workdir, written and read back."""

import json
import math
import types

import jax
import pytest

from configs import base, quickstart
from configs.errors import UserError
from configs.validate import leaves
from configs.workdir import MACHINE, RECIPE, get_config
from gptjax import main
from gptjax.common.workdir import load_config, refuse_links, save_config


def recipe_config():
    """The quickstart, with the defaults of all that a workdir does not pass on."""
    config, default = quickstart.get_config(), leaves(base.get_config())
    config.update_from_flattened_dict({key: default[key] for key in MACHINE})
    return config


def test_round_trip_through_the_workdir(tmp_path):
    workdir = tmp_path / "deep" / "run"
    config = recipe_config()
    config.workdir = str(workdir)
    config.sample.prompts = ("One \u2581", "\U0001f600")
    config.train.max_hours = 1.5
    config.optim.learning_rate = 0.1 + 0.2  # not one of the short decimal numbers
    save_config(config, workdir)
    loaded = load_config(workdir)
    assert loaded.to_dict() == config.to_dict()
    types = [{name: type(value) for name, value in leaves(c).items()} for c in (loaded, config)]
    assert types[0] == types[1]
    assert [p.name for p in workdir.iterdir()] == ["config.json"]


def test_an_unset_leaf_stays_unset_and_can_be_set(tmp_path):
    save_config(base.get_config(), tmp_path)
    loaded = load_config(tmp_path)
    assert loaded.train.max_hours is None
    loaded.train.max_hours = 2.0
    with pytest.raises(TypeError):
        loaded.train.max_hours = "two"


def test_a_folder_that_is_no_workdir_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json.*`gptjax train`"):
        load_config(tmp_path)


def test_unknown_keys_are_refused(tmp_path):
    config = base.get_config()
    config.model.n_experts = 8
    save_config(config, tmp_path)
    with pytest.raises(UserError, match=r"another version: model\.n_experts"):
        load_config(tmp_path)


def test_missing_keys_get_their_defaults_and_are_logged(tmp_path, caplog):
    config = recipe_config()
    config.workdir = str(tmp_path)
    config.model.dropout = 0.25
    save_config(config, tmp_path)
    with caplog.at_level("INFO"):
        assert load_config(tmp_path).to_dict() == config.to_dict()
    assert not caplog.messages
    saved = json.loads((tmp_path / "config.json").read_text())
    del saved["model"]["dropout"], saved["log"]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    with caplog.at_level("INFO"):
        loaded = load_config(tmp_path)
    default = base.get_config()
    config.model.dropout = default.model.dropout
    assert loaded.to_dict() == config.to_dict()
    (message,) = caplog.messages
    assert "is older than model.dropout: " in message  # keys of the machine are not read


@pytest.mark.parametrize(
    "text",
    [
        *("", '{"model": {', "[1, 2]", '{"seed": "one"}', '{"model": 3}'),
        *('{"a":' * 100_000 + "1" + "}" * 100_000, '{"sample": {"prompts": ["\\ud800"]}}'),
        *('{"seed": %s}' % ("9" * 5000), '{"model.n_layer": 3}', '{"seed": 1}' + " " * (1 << 20)),
        '{"model": {"n_layer": null}}',
    ],
)
def test_a_damaged_file_is_reported(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        load_config(tmp_path)


def test_every_key_describes_the_recipe_or_the_machine():
    assert not RECIPE & MACHINE
    assert RECIPE | MACHINE == set(leaves(base.get_config()))


OTHER = {  # than the defaults
    **dict.fromkeys(("workdir", "compilation_cache_dir", "init_from"), "elsewhere"),
    **{"train.teacher": "elsewhere"},
    **dict.fromkeys(("data.source", "data.cache_dir", "data.local_dir"), "elsewhere"),
    **{"tokenizer.file": "elsewhere", "data.cache_bytes": 7, "data.engine": "ray"},
    **dict.fromkeys(("data.text_column", "data.id_column", "data.separator"), "elsewhere"),
    **{"data.split_by": "elsewhere"},
    **{"data.mixture": (("elsewhere", 1),), "data.mixture_schedule": ((5, (1,)),)},
    **{"data.mixture_file": "elsewhere"},
    **{"allow_cpu": True, "data.prepare_workers": 7, "data.prefetch_batches": 7},
    **{"eval.benchmarks": ("elsewhere",), "report.interval": 7, "log.tensorboard": False},
    **{"log.wandb": True, "log.wandb_project": "elsewhere", "mesh.fsdp": 7},
    **{"mesh.data": 7, "mesh.gather": "layer"},
}


@pytest.mark.parametrize("read", [lambda p: get_config(str(p)), load_config])
def test_a_workdir_says_nothing_about_the_machine(tmp_path, read):
    assert OTHER.keys() == MACHINE
    config = quickstart.get_config()
    config.update_from_flattened_dict(OTHER)
    save_config(config, tmp_path)
    read_back, default = leaves(read(tmp_path)), leaves(base.get_config())
    for key in MACHINE - {"workdir"}:
        assert read_back[key] == default[key] != OTHER[key], key
    assert read_back["workdir"] == str(tmp_path)  # which the user has named
    assert {key: read_back[key] for key in RECIPE} == {key: leaves(config)[key] for key in RECIPE}


def test_programs_that_a_workdir_brings_along_are_not_executed(tmp_path, monkeypatch):
    """JAX executes what lies in its compilation cache."""
    planted = tmp_path / "run" / "compiled"
    planted.mkdir(parents=True)
    (planted / "jit_train_step-0-cache").write_bytes(b"machine code")
    config = quickstart.get_config()
    config.compilation_cache_dir = str(planted)
    save_config(config, tmp_path / "run")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.chdir(tmp_path)
    set_to = {}
    monkeypatch.setattr(jax.config, "update", set_to.__setitem__)
    monkeypatch.setattr(main, "require_gpu", lambda _: None)
    done = types.SimpleNamespace(step=config.train.max_iters)
    monkeypatch.setattr(main, "train_and_evaluate", lambda *_: done)
    main.main(get_config(str(tmp_path / "run")))
    assert set_to["jax_compilation_cache_dir"] == base.get_config().compilation_cache_dir
    assert [file.name for file in planted.iterdir()] == ["jit_train_step-0-cache"]  # not "checked"


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints", "eval", "tb/plugins", "lock"])
def test_links_in_a_workdir_are_refused(tmp_path, name):
    workdir = tmp_path / "run"
    (workdir / name).parent.mkdir(parents=True)
    (workdir / "wandb").mkdir()
    (workdir / "wandb" / "latest-run").symlink_to(tmp_path)  # W&B's own
    refuse_links(workdir)
    (workdir / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=f"{name} is a symbolic link"):
        refuse_links(workdir)
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    refuse_links(tmp_path / "link")  # the user's own


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("n_layer", 0, "n_layer = 0 must be positive"),  # would divide by it
        ("n_layer", 10**12, "must be positive and at most 1,048,576"),
        ("n_head", 3, "must be a multiple of model.n_head"),
        ("rope_theta", math.nan, "must be positive"),
        ("position", "none", "must be one of learned, rope"),
    ],
)
def test_values_that_give_no_model_are_refused_when_they_are_read(tmp_path, key, value, words):
    config = base.get_config()
    config.model[key] = value
    save_config(config, tmp_path)
    with pytest.raises(UserError, match=rf"config\.json cannot be of a run: .*{words}"):
        load_config(tmp_path)
