"""`gptjax doctor`: with a driver and without one, with JAX and without it."""

import sys
from pathlib import Path

import pytest

from gptjax.cli import doctor, machine

CPU = {"version": "0.10.2", "platform": "cpu", "kinds": ["cpu"], "attention": ["xla: no GPU"]}
GPU = CPU | {"platform": "gpu", "kinds": ["NVIDIA GeForce RTX 4070"]}
SMI = """#!/bin/sh
[ "$2" = --format=csv,noheader,nounits ] || exit 9
case "$1" in
  --query-gpu=name,driver_version,memory.total,memory.used,utilization.gpu,compute_cap)
    echo "NVIDIA GeForce RTX 4070, 550.54.14, 12282, 611, 3, 8.9" ;;
  --query-gpu=name,clocks.max.sm) echo "NVIDIA GeForce RTX 4070, 3105" ;;
  *) exit 9 ;;
esac
"""


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """A fake nvidia-smi, the first on the PATH; its version can be changed."""
    file = tmp_path / "nvidia-smi"
    file.write_text(SMI)
    file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    return file


def text(cards, jax):
    return "\n".join(f"{what}: {value}" for what, value in doctor.facts(cards, jax))


def test_the_cards_of_a_driver(driver):
    (card,) = machine.cards()
    report = text([card], GPU)
    assert "driver: NVIDIA 550.54.14" in report
    assert "card 0: NVIDIA GeForce RTX 4070, 611 of 12282 MiB in use, busy 3 %" in report
    assert "compute capability 8.9" in report
    assert list(doctor.problems([card], GPU)) == []


def test_a_driver_that_fails_lists_no_card(driver):
    driver.write_text("#!/bin/sh\nexit 9\n")
    assert machine.cards() == []
    assert "driver: none" in text([], CPU)
    assert any("CPU" in line for line in doctor.advice([]))


@pytest.mark.parametrize(
    ("version", "remedy"),
    [
        ("470.1", "too old for CUDA 12: install 525"),
        ("550.54.14", "EXTRA=cuda12"),
        ("580.65.06", "EXTRA=cuda13"),
    ],
)
def test_a_card_that_jax_does_not_use_is_a_problem(driver, monkeypatch, version, remedy):
    driver.write_text(SMI.replace("550.54.14", version))
    monkeypatch.setattr(machine, "extras", lambda: {"cuda12": ["a"], "cuda13": ["b"]})
    (problem,) = doctor.problems(machine.cards(), CPU)
    assert remedy in problem
    monkeypatch.setattr(machine, "is_checkout", lambda: False)
    assert version == "470.1" or "gptjax[cuda1" in next(doctor.problems(machine.cards(), CPU))
    monkeypatch.setattr(machine, "extras", lambda: {"cuda12": []})
    if version != "470.1":
        assert "though JAX has CUDA libraries" in next(doctor.problems(machine.cards(), CPU))


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("raise ModuleNotFoundError(\"No module named 'jaxlib'\")", "No module named 'jaxlib'"),
        ("import os; os.kill(os.getpid(), 11)", "signal 11"),
        ("def devices(): raise RuntimeError('no backend')", "no backend"),
    ],
)
def test_a_jax_that_does_not_work_is_reported(tmp_path, monkeypatch, module, reason):
    (tmp_path / "jax.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    found = doctor.probe_jax()
    assert reason in found["error"]
    assert f"JAX: BROKEN: {found['error']}" in text([], found)
    (problem,) = doctor.problems([], found)
    assert "JAX or another package does not work" in problem and "make clean setup" in problem


def test_a_missing_package_is_named(monkeypatch):
    known = machine._version
    monkeypatch.setattr(machine, "_version", lambda name: None if name == "flax" else known(name))
    assert "flax MISSING" in text([], CPU)
    assert "(flax is missing)" in next(doctor.problems([], CPU))


def test_what_differs_from_the_lock_is_marked(monkeypatch):
    known = machine._version
    monkeypatch.setattr(machine, "_version", lambda name: "1" if name == "flax" else known(name))
    lock = (Path(__file__).parents[2] / "requirements" / "cpu.txt").read_text()
    locked = next(line for line in lock.splitlines() if line.startswith("flax=="))
    assert f"flax 1 (locked: {locked.split()[0].removeprefix('flax==')})" in text([], CPU)


def test_extras_name_what_they_lack(monkeypatch):
    requirements = [
        "jax==0.10.2",
        'jax[cuda12]; extra == "cuda12"',
        'fastapi>=0.115; extra == "serve"',
        'jinja2>=3; extra == "serve"',
        'gptjax[serve]; extra == "clients"',
        'no-such-package; extra == "clients"',
    ]
    monkeypatch.setattr(machine, "_requirements", lambda: requirements)
    lacking = ["fastapi", "jax-cuda12-plugin", "no-such-package"]
    monkeypatch.setattr(machine, "_version", lambda name: None if name in lacking else "1")
    assert machine.extras() == {
        "cuda12": ["jax-cuda12-plugin"],
        "serve": ["fastapi"],
        "clients": ["no-such-package"],
    }
    assert [line for line in doctor.advice([]) if "The extra" in line] == [
        "The extra serve lacks fastapi: .venv/bin/pip install '.[serve]'"
    ]


@pytest.mark.parametrize(
    ("platform", "release", "words"),
    [("linux", "5.15.0-microsoft-standard-WSL2", "WSL 2"), ("win32", "10", "native Windows")],
)
def test_the_systems_by_name(monkeypatch, platform, release, words):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(machine.platform, "release", lambda: release)
    assert words in machine.operating_system()
    assert ("WSL 2" in " ".join(doctor.problems([], CPU))) == (platform == "win32")


def test_no_user_and_no_secret_is_shown(monkeypatch):
    for name in machine.variables():
        monkeypatch.delenv(name.partition("=")[0])
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setattr(Path, "home", lambda: Path("/somewhere/alice"))
    error = "cannot load /home/bob/x.so, /somewhere/alice/y, C:\\Users\\eve\\z, /Users/dan/w"
    report = machine.without_names(text([], {"error": error}))
    assert "variables: JAX_PLATFORMS=cpu" in report and "secret" not in report
    assert "cannot load ~/x.so, ~/y, ~\\z, ~/w" in report


def test_the_whole_report(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "probe_jax", lambda: CPU)
    monkeypatch.setattr(machine, "cards", list)
    with pytest.raises(SystemExit) as stop:
        doctor._main([])
    out = capsys.readouterr().out
    assert stop.value.code == 0 and out.startswith("gptjax     ")
    assert out.endswith("\ngptjax trains here, on the cpu: gptjax train quickstart\n")
