"""How long the first step took the last time."""

import copy
import json

import jax
import pytest

from gptjax.step.first_step_times import FirstStepTime


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of the compilation cache, which is made when it is first written to."""
    folder = tmp_path / "compiled"
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(folder))
    yield folder
    jax.config.update("jax_compilation_cache_dir", before)


def test_the_time_is_known_for_runs_of_the_same_size_only(debug_config, folder):
    assert FirstStepTime(debug_config, 64).seconds is None
    FirstStepTime(debug_config, 64).keep(12.34)
    same, larger = copy.deepcopy(debug_config), copy.deepcopy(debug_config)
    same.optim.learning_rate, same.train.max_iters, same.workdir = 1.0, 7, "elsewhere"
    larger.model.n_layer += 1
    assert FirstStepTime(same, 64).seconds == 12.3
    assert FirstStepTime(larger, 64).seconds is None
    for key, value in (("teacher", "runs/other"), ("later_tokens", (0.5,))):
        slower = copy.deepcopy(debug_config)
        slower.train[key] = value
        assert FirstStepTime(slower, 64).seconds is None
    FirstStepTime(larger, 64).keep(99)
    FirstStepTime(same, 64).keep(5)
    assert FirstStepTime(debug_config, 64).seconds == 5 and FirstStepTime(larger, 64).seconds == 99


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"a": "b"}'])
def test_a_damaged_file_is_written_again(debug_config, folder, damage):
    folder.mkdir()
    (folder / "first-steps.json").write_text(damage)
    time = FirstStepTime(debug_config, 64)
    assert time.seconds is None
    time.keep(3)
    assert list(json.loads((folder / "first-steps.json").read_text()).values()) == [3]


def test_a_cache_that_is_off_or_cannot_be_written_keeps_nothing(debug_config, folder):
    folder.write_text("a file")
    FirstStepTime(debug_config, 64).keep(3)
    assert FirstStepTime(debug_config, 64).seconds is None
    jax.config.update("jax_compilation_cache_dir", None)
    FirstStepTime(debug_config, 64).keep(3)
    assert FirstStepTime(debug_config, 64).seconds is None
