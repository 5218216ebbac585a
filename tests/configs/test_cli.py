"""The command line: mistakes, overrides, --help."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from configs import base, rtx4070
from configs.help import documented_keys
from configs.validate import leaves

ROOT = Path(__file__).parents[2]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def test_misspelt_keys_are_reported_with_their_nearest_match():
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
    values = leaves(json.loads(result.stdout))
    recipe = leaves(json.loads(rtx4070.get_config().to_json()))
    assert values == recipe | {name: value for name, (_, value) in OVERRIDES.items()}
    for name, (_, expected) in OVERRIDES.items():
        assert type(values[name]) is type(expected), name
    # No type is left out.
    defaults = leaves(base.get_config())
    assert set(map(type, defaults.values())) == {type(defaults[name]) for name in OVERRIDES}


def test_a_missing_file_is_reported_with_those_that_exist():
    result = run("-c", PRINT_CONFIG, "--config=configs/rtx4090.py", "--config.sed=1")
    assert result.returncode == 2
    assert "configs/rtx4090.py is no file" in result.stderr and "rtx4070.py" in result.stderr
    assert "sed is not a key" in result.stderr  # both mistakes at once


# --- --help ---

COMMANDS = {  # with a text that its --help must contain
    "gptjax.main": "--config",
    "gptjax.plan": "--[no]compile",
    "gptjax.generate": "--prompt",
    "gptjax.evaluate": "--benchmarks",
    "gptjax.export": "--format",
    "gptjax.import_hf": "--source",
    "gptjax.serve": "--token_file",
    "gptjax.report": "--compare",
    "gptjax.sweep": "--jobs",
    "gptjax.checkpoint": "--workdir",
    "gptjax.lm_eval_adapter": "eval",
    "data_pipeline.prepare": "--config",
    "data_pipeline.browse": "--split",
}
WITH_CONFIG = ["gptjax.main", "gptjax.plan", "data_pipeline.prepare", "data_pipeline.browse"]

HELP_OF_ALL = """
import os, runpy, sys
import gptjax.train.trainer  # once for all, as it is slow
for command in sys.argv[1:]:
    if not (child := os.fork()):
        os.dup2(os.open(command, os.O_WRONLY | os.O_CREAT), 1)
        sys.argv = [command, "--help"]
        runpy.run_module(command, run_name="__main__", alter_sys=True)
    print(command, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def helps(tmp_path_factory):
    """Returns {command: (exit status, printed text)}."""
    folder = tmp_path_factory.mktemp("help")
    result = subprocess.run(
        [sys.executable, "-c", HELP_OF_ALL, *COMMANDS],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "Traceback" not in result.stderr, result.stderr
    statuses = dict(line.split() for line in result.stdout.splitlines())
    return {c: (int(status), (folder / c).read_text()) for c, status in statuses.items()}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_the_flags_and_exits_with_0(helps, command):
    status, text = helps[command]
    assert status == 0 and COMMANDS[command] in text
    keys = re.findall(r"^  --config\.([\w.]+)=", text, re.MULTILINE)
    assert sorted(keys) == (sorted(leaves(base.get_config())) if command in WITH_CONFIG else [])


def test_help_has_the_default_constraint_and_comment_of_a_key(helps):
    text = " ".join(helps["gptjax.main"][1].split())
    for words in (
        "--config.optim.min_lr=6e-5 (must not be negative) floor, reached at lr_decay_iters",
        '--config.data.on_corrupt="stop" (must be one of stop, keep_before) damaged row group',
        "--config.train.max_hours=None (must be positive) stop politely",
    ):
        assert words in text


def test_documented_defaults_are_those_of_base():
    documented = {key: ast.literal_eval(default) for key, default, _ in documented_keys()}
    assert documented == leaves(base.get_config())


def test_an_unknown_flag_is_no_request_for_help():
    result = run("-c", PRINT_CONFIG, "--config=configs/debug.py", "--sede=1")
    assert result.returncode == 1 and "Unknown command line flag 'sede'" in result.stderr
    assert not result.stdout
