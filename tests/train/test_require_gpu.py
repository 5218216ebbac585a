"""No GPU where one is expected: refused with what is known, unless the CPU was asked for."""

import copy
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from configs import base, debug, quickstart, rtx4070, rtx4070_best
from configs.errors import UserError
from gptjax.train import require_gpu as module
from gptjax.train.require_gpu import require_gpu

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(debug_config):
    config = copy.deepcopy(debug_config)
    config.allow_cpu = False
    return config


@pytest.fixture
def plugin(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: name == "jax_cuda12_plugin" or real(name)
    )


def without_plugin(monkeypatch):
    monkeypatch.setattr(module, "_PLUGINS", ("no_such_plugin",))


def test_a_plugin_without_a_gpu_is_refused_with_jaxs_reason(plugin, config):
    with pytest.raises(UserError) as error:
        require_gpu(config)
    text = str(error.value)
    assert text.startswith("JAX found no GPU, but jax_cuda12_plugin is installed: on the CPU")
    for part in ("- JAX: ", "- driver: ", "JAX_PLATFORMS=cpu", "allow_cpu=True"):
        assert part in text
    assert "CUDA: JAX has none" not in text


def test_bfloat16_without_a_gpu_is_refused(monkeypatch, config):
    without_plugin(monkeypatch)
    require_gpu(config)  # float32 on a machine without CUDA: nothing expects a GPU
    config.model.compute_dtype = "bfloat16"
    with pytest.raises(UserError) as error:
        require_gpu(config)
    text = str(error.value)
    assert "no GPU, but model.compute_dtype = bfloat16: on the CPU" in text
    assert "CUDA: JAX has none here; with a card, `gptjax doctor` says" in text
    config.allow_cpu = True
    require_gpu(config)


def test_the_state_of_the_driver_is_reported(plugin, config, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_DRIVER", tmp_path / "version")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError) as error:
        require_gpu(config)
    for part in ("driver: not loaded (", "nvidia-smi: not on the PATH", "CUDA_VISIBLE_DEVICES=\n"):
        assert part in str(error.value)
    (tmp_path / "version").write_text("NVRM version: 570.1\nGCC version: 12\n")
    (tmp_path / "nvidia-smi").touch(mode=0o755)
    with pytest.raises(UserError) as error:
        require_gpu(config)
    assert "driver: NVRM version: 570.1\n" in str(error.value)
    assert "nvidia-smi: " not in str(error.value)


def test_a_gpu_that_does_not_start_is_an_error_for_people(config, monkeypatch, caplog):
    def fail():
        raise RuntimeError("Unable to initialize backend 'cuda': CUDA_ERROR_UNKNOWN")

    monkeypatch.setattr(jax, "devices", fail)
    with pytest.raises(UserError, match=r"(?s)cannot use the GPU.*JAX: .*CUDA_ERROR_UNKNOWN"):
        require_gpu(config)
    config.allow_cpu = True
    require_gpu(config)
    assert "CUDA_ERROR_UNKNOWN" in caplog.text
    assert jax.config.jax_platforms == "cpu"


def test_only_the_small_configurations_allow_the_cpu():
    assert all(file.get_config().allow_cpu for file in (debug, quickstart))
    assert not any(file.get_config().allow_cpu for file in (base, rtx4070, rtx4070_best))


def test_the_program_refuses_before_it_reads_data(tmp_path):
    (tmp_path / "jax_cuda12_plugin").mkdir()
    (tmp_path / "jax_cuda12_plugin" / "__init__.py").touch()
    command = [sys.executable, "-m", "gptjax.main", "--config=configs/debug.py"]
    command += ["--config.allow_cpu=False", f"--config.workdir={tmp_path / 'run'}"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 1 and "error: JAX found no GPU" in result.stderr
    assert not (tmp_path / "run").exists()
