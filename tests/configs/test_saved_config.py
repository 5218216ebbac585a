"""config.json of a workdir, written and read back."""

import json

import pytest

from configs import base, quickstart
from configs.errors import UserError
from configs.validate import leaves
from gptjax.common.workdir import load_config, save_config


def test_round_trip_through_the_workdir(tmp_path):
    workdir = tmp_path / "deep" / "run"
    config = quickstart.get_config()
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
    with pytest.raises(UserError, match=r"no config\.json.*gptjax\.main"):
        load_config(tmp_path)


def test_unknown_keys_are_refused(tmp_path):
    config = base.get_config()
    config.model.n_experts = 8
    save_config(config, tmp_path)
    with pytest.raises(UserError, match=r"another version: model\.n_experts"):
        load_config(tmp_path)


def test_missing_keys_get_their_defaults_and_are_logged(tmp_path, caplog):
    config = quickstart.get_config()
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
    config.model.dropout, config.log = default.model.dropout, default.log
    assert loaded.to_dict() == config.to_dict()
    (message,) = caplog.messages
    missing = [*(f"log.{key}" for key in default.log), "model.dropout"]
    assert f"is older than {', '.join(missing)}: " in message


@pytest.mark.parametrize("text", ["", '{"model": {', "[1, 2]", '{"seed": "one"}', '{"model": 3}'])
def test_a_damaged_file_is_reported(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        load_config(tmp_path)
