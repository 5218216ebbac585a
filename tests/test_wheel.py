"""The wheel, in an environment that has only it and the locked packages, in an empty folder."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from data_pipeline.token_store import TokenStore

ROOT = Path(__file__).parents[1]
SOURCES = ("configs", "data_pipeline", "gptjax", "benchmarks", "tests")
FILES = ("pyproject.toml", "setup.py", "README.md", "LICENSE")


def pip(*arguments):
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy of the checkout, in which setuptools leaves files."""
    folder = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns("__pycache__", "fixtures", "sweeps")
    for name in SOURCES:
        shutil.copytree(ROOT / name, folder / "sources" / name, ignore=ignored)
    for name in FILES:
        shutil.copy(ROOT / name, folder / "sources" / name)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    pip("wheel", *options, "--wheel-dir", str(folder), str(folder / "sources"))
    (file,) = folder.glob("gptjax-*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel):
    """The `bin` of a new environment with the wheel; packages are those of this test run."""
    folder = wheel.parent / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    pip("--python", str(python), "install", "--quiet", "--no-deps", "--no-index", str(wheel))
    (site_packages,) = folder.glob("lib/python*/site-packages")
    locked = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site_packages / "locked.pth").write_text("\n".join(locked))  # without the .pth files there
    return folder / "bin"


def run(installed, folder, *arguments):
    variables = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    variables["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "True"  # compiles in half the time
    command = [installed / "gptjax", *arguments]
    options = {"capture_output": True, "text": True, "timeout": 300}
    return subprocess.run(command, cwd=folder, env=variables, **options)


def test_the_wheel_has_no_other_name_at_the_top(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"gptjax"}
    inside = {name.split("/")[2] for name in names if name.startswith("gptjax/_packages/")}
    assert inside == {"configs", "data_pipeline"}
    files = {
        file.relative_to(ROOT).as_posix()
        for package in ("configs", "data_pipeline", "gptjax")
        for file in (ROOT / package).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    packed = {n.replace("gptjax/_packages/", "") for n in names if n.startswith("gptjax/")}
    assert packed == files  # also templates, pages, the bundled text and licences


def test_the_command_runs_in_an_empty_folder(installed, tmp_path):
    version = run(installed, tmp_path, "--version")
    assert version.returncode == 0 and re.fullmatch(r"gptjax [\d.]+\n", version.stdout)
    (tmp_path / "configs").mkdir()  # somebody else's
    (tmp_path / "configs" / "__init__.py").write_text("raise AssertionError\n")
    report = run(installed, tmp_path, "doctor")
    assert report.returncode == 0, report.stdout + report.stderr
    assert "(wheel)" in report.stdout and "1 x cpu" in report.stdout


def test_a_run_by_name_on_the_bundled_data(installed, tmp_path):
    """Its first use of a parquet file is in a process of its own, which finds the packages, too."""
    keys = ["train.max_iters=1", "eval.eval_iters=1", "sample.prompts=()", "model.n_layer=1"]
    done = run(installed, tmp_path, "train", "debug", *keys)
    assert done.returncode == 0, done.stderr
    assert "step 1/1 | val loss" in done.stderr
    assert (tmp_path / "runs" / "debug" / "config.json").is_file()
    assert list((tmp_path / "data" / "stores").glob("quickstart-*/manifest.json"))


@pytest.mark.slow
def test_a_preparation_with_two_worker_processes_by_a_file_of_the_users(installed, tmp_path):
    (tmp_path / "own").mkdir()
    for name in ("a", "b"):  # enough text for two
        bundled = ROOT / "data_pipeline" / "shard" / "quickstart.parquet"
        shutil.copy(bundled, tmp_path / "own" / f"{name}.parquet")
    (tmp_path / "mine.py").write_text(
        "from configs import debug\n\n\n"
        "def get_config():\n"
        "    config = debug.get_config()\n"
        "    config.data.source = 'own'\n"
        "    config.data.prepare_workers = 2\n"
        "    return config\n"
    )
    done = run(installed, tmp_path, "prepare", "mine.py")
    assert done.returncode == 0, done.stderr
    (store,) = (tmp_path / "data" / "stores").glob("[!.]*/manifest.json")
    assert len(TokenStore.open(store.parent).manifest["sources"]) == 2
