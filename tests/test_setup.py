"""What `make setup` shows, the Dockerfile, and the sizes that are named."""

import importlib.util
import json
import re
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
LOCKS = sorted(path.stem for path in (ROOT / "requirements").glob("*.txt"))
PIP = """\
Collecting absl-py==2.5.1 (from -r requirements/cpu.txt (line 7))
  Downloading absl_py-2.5.1-py3-none-any.whl.metadata (3.3 kB)
Collecting jaxlib==0.10.2 (from -r requirements/cpu.txt (line 9))
  Downloading jaxlib-0.10.2-cp311-cp311-manylinux_2_27_x86_64.whl.metadata (1.3 kB)
  Using cached jaxlib-0.10.2-cp311-cp311-manylinux_2_27_x86_64.whl (80.1 MB)
Processing /wheels/a-1-py3-none-any.whl (from -r requirements/cpu.txt (line 8))
Requirement already satisfied: rich==15.0.0 in .venv/lib (from -r requirements/cpu.txt (line 3))
Collecting numpy==2.4.6 (from -r requirements/cpu.txt (line 11))
Downloading numpy-2.4.6-cp311-cp311-manylinux_2_27_x86_64.whl (16 MB)
Downloading absl_py-2.5.1-py3-none-any.whl (135 kB)
Installing collected packages: numpy, jaxlib, absl-py
Successfully installed absl-py-2.5.1 jaxlib-0.10.2 numpy-2.4.6
"""
LOCK = "# 5\nabsl-py==2.5.1 \\\n    --hash=sha256:0\njaxlib==0.10.2\nnumpy==2.4.6\na==1\nb==2\n"


def test_the_progress_of_pip():
    path = ROOT / "requirements" / "show_progress.py"
    spec = importlib.util.spec_from_file_location("show_progress", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert list(module.lines(PIP.splitlines(keepends=True), LOCK)) == [
        "    2 of 5: jaxlib (80.1 MB)",
        "    5 of 5: numpy (16 MB)",
        "  installing 5 packages: a minute or more",
    ]


def test_make_says_the_size_and_keeps_the_status_of_pip(tmp_path):
    command = ["make", "--dry-run", "--always-make", "setup", "EXTRA=cuda12"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "requirements/cuda12.txt: 3 GB to download, 6.0 GB on the disk" in done.stdout
    (tmp_path / "Makefile").write_text(
        "".join(re.findall(r"^\.?SHELL.*\n", (ROOT / "Makefile").read_text(), re.MULTILINE))
        + "all:\n\tfalse | true\n"
    )
    assert subprocess.run(["make", "-s"], cwd=tmp_path, capture_output=True).returncode == 2


# --- the Dockerfile, by what can be seen without Docker: it is not built here ---


def instructions():
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(maxsplit=1)) for line in lines]


def test_the_dockerfile_has_known_instructions_and_a_fixed_python():
    names = [name for name, _ in instructions()]
    assert names[0] == "FROM" and names.count("FROM") == 1
    assert set(names) <= {"FROM", "ARG", "WORKDIR", "COPY", "RUN", "ENTRYPOINT", "CMD"}
    image = dict(instructions())["FROM"]
    version = re.fullmatch(r"python:3\.(\d+)-slim-bookworm", image)
    assert version and 11 <= int(version[1]) <= 14
    for name, value in instructions():
        if name in ("ENTRYPOINT", "CMD"):
            assert all(isinstance(word, str) for word in json.loads(value))  # no shell: signals


def test_what_the_dockerfile_copies_exists_and_is_not_ignored():
    kept = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = [words.split()[:-1] for name, words in instructions() if name == "COPY"]
    paths = {path.rstrip("/") for paths in copied for path in paths}
    assert paths == kept and all((ROOT / path).exists() for path in paths)
    # All that the project is built from.
    assert {"pyproject.toml", "setup.py", "README.md", "LICENSE", "gptjax"} <= paths


def test_the_dockerfile_installs_locked_packages_with_hashes():
    installs = [words for name, words in instructions() if name == "RUN" and "pip" in words]
    locked, project = installs
    assert "--require-hashes" in locked and "-r requirements/${EXTRA}.txt" in locked
    assert "--no-deps" in project and "--no-build-isolation" in project
    extras = set(re.findall(r"EXTRA=(\w+)", (ROOT / "Dockerfile").read_text())) | {"cuda13"}
    assert extras == set(LOCKS)


def test_the_template_of_a_report_asks_for_the_doctor():
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / "fault.yml").read_text())
    asked = {part["id"]: part for part in form["body"]}
    assert "gptjax doctor" in asked["doctor"]["attributes"]["label"]
    assert asked["doctor"]["validations"]["required"]
