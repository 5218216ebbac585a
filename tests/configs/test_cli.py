"""The command line: mistakes, overrides, --help."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from configs import base, debug, rtx4070
from configs.help import documented_keys
from configs.validate import leaves
from configs.workdir import MACHINE

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
    assert "configs/rtx4090.py is no file (names of bundled ones: base, chat, " in result.stderr
    assert "rtx4070_best, workdir)" in result.stderr  # and no other file of configs/
    assert "sed is not a key" in result.stderr  # both mistakes at once


# --- --help ---

COMMANDS = {  # with a text that its --help must contain
    "gptjax.main": "--config",
    "gptjax.on_ray": "--heartbeat_seconds",
    "gptjax.plan": "--[no]compile",
    "gptjax.generate": "--temperature",
    "gptjax.chat": "--top_k",
    "gptjax.evaluate": "--benchmarks",
    "gptjax.export": "--format",
    "gptjax.import_hf": "--source",
    "gptjax.serve": "--compilation_cache_dir",
    "gptjax.report": "--compare",
    "gptjax.sweep": "--jobs",
    "gptjax.checkpoint": "--workdir",
    "gptjax.cli": "gptjax VERB",
    "gptjax.cli.completion": "gptjax completion bash",
    "gptjax.cli.doctor": "gptjax doctor",
    "gptjax.cli.watch": "--workdir",
    "gptjax.lm_eval_adapter": "eval",
    "data_pipeline.prepare": "--config",
    "data_pipeline.browse": "--split",
}
LIGHT = ("gptjax.cli", "data_pipeline")  # without JAX
WITH_CONFIG = ["gptjax.main", "gptjax.on_ray", "gptjax.plan", "data_pipeline.prepare"]
WITH_CONFIG += ["data_pipeline.browse"]

RUN_ALL = """
import json, os, runpy, sys
exec(sys.argv[1])  # imports, once for all
for i, arguments in enumerate(json.loads(sys.argv[2])):
    if not (child := os.fork()):
        for fd in (1, 2):
            os.dup2(os.open(f"{i}.{fd}", os.O_WRONLY | os.O_CREAT), fd)
        sys.argv = arguments
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def run_all(folder, command_lines, imports="import gptjax.train.trainer"):
    """Runs command lines in `folder`; returns (exit status, stdout, stderr) of each."""
    quiet = ["-W", "ignore::RuntimeWarning"]  # of runpy: a module was imported before it is run
    result = subprocess.run(
        [sys.executable, *quiet, "-c", RUN_ALL, imports, json.dumps(command_lines)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{folder}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    outputs = [
        [(folder / f"{i}.{fd}").read_text() for fd in (1, 2)] for i in range(len(command_lines))
    ]
    assert not any("Traceback" in errors for _, errors in outputs)
    return [(int(s), *o) for s, o in zip(result.stdout.split(), outputs, strict=True)]


@pytest.fixture(scope="module")
def helps(tmp_path_factory):
    """Returns {command: (exit status, printed text)}."""
    lines = {command: [command, "--help"] for command in COMMANDS}
    lines["topics"] = ["data_pipeline.prepare", "--help", *TOPICS]
    lines["all"] = ["data_pipeline.prepare", "-h", "all"]
    light = {name: lines.pop(name) for name in list(lines) if lines[name][0].startswith(LIGHT)}
    results = run_all(tmp_path_factory.mktemp("help"), list(lines.values()))
    folder = tmp_path_factory.mktemp("light")
    results += run_all(folder, list(light.values()), "import configs.cli")
    names = [*lines, *light]
    return {name: (status, text) for name, (status, text, _) in zip(names, results, strict=True)}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_the_flags_and_exits_with_0(helps, command):
    status, text = helps[command]
    assert status == 0 and COMMANDS[command] in text
    assert text.count("\n") < 110
    keys = re.findall(r"  ([a-z][\w.]*)=", text.partition("Keys of the configuration")[2])
    assert sorted(keys) == (sorted(leaves(base.get_config())) if command in WITH_CONFIG else [])


def test_help_explains_a_key_with_its_default_constraint_and_comment(helps):
    status, text = helps["all"]
    assert status == 0
    keys = re.findall(r"^  ([\w.]+)=", text, re.MULTILINE)
    assert sorted(keys) == sorted(leaves(base.get_config()))
    text = " ".join(text.split())
    for words in (
        "optim.min_lr=6e-5 (must not be negative) floor, reached at lr_decay_iters",
        'data.on_corrupt="stop" (must be one of stop, keep_before) damage: stop, or',
        "train.max_hours=None (must be positive) stop with a checkpoint",
    ):
        assert words in text


TOPICS = ["eval", "seed", "optim.eps", "warmup"]  # a group, two keys, a part of one


def test_help_explains_groups_and_keys(helps):
    status, text = helps["topics"]
    assert status == 0 and text.startswith("  seed=1337  (must not be negative)\n      initial")
    explained = re.findall(r"^  ([\w.]+)=", text, re.MULTILINE)
    of_eval = [key for key in leaves(base.get_config()) if key.startswith("eval.")]
    assert explained[:3] == ["seed", "optim.warmup_iters", "optim.eps"]
    assert sorted(explained[3:]) == sorted(of_eval)


def test_documented_defaults_are_those_of_base():
    documented = {key: ast.literal_eval(default) for key, default, _ in documented_keys()}
    assert documented == leaves(base.get_config())


def test_mistakes_in_a_file_are_reported_without_a_traceback(tmp_path):
    """Also those of a file that a bundled one reads."""
    (tmp_path / "print_config.py").write_text(PRINT_CONFIG)
    (tmp_path / "broken.py").write_text("def get_config(:\n    pass\n")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{")
    lines = [["print_config", file, "seed=7"] for file in ("broken.py", "workdir:run")]
    broken, damaged = run_all(tmp_path, lines, "import configs.cli")
    assert broken == (1, "", "error: broken.py, line 1: invalid syntax: def get_config(:\n")
    assert damaged[:2] == (1, "")
    assert re.fullmatch(r"error: run/config\.json is damaged: .*\.\n", damaged[2])


def test_an_unknown_flag_is_no_request_for_help():
    result = run("-c", PRINT_CONFIG, "--config=configs/debug.py", "--sede=1")
    assert result.returncode == 1 and not result.stdout
    assert result.stderr.startswith("error: Unknown command line flag 'sede'")


def test_a_missing_flag_is_named_with_its_meaning():
    result = run("-c", PRINT_FLAGS)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "error: --workdir is missing: A folder. See --help.\n"


SCRIPT = """
import logging, sys
from configs import cli
exec(sys.argv[1])
cli.log_lines_by_default()
logging.getLogger("gptjax.x").info("a line")
"""


@pytest.mark.parametrize(
    ("setup", "lines"),
    [
        ("", [r"\d\d:\d\d:\d\d a line"]),  # as the command
        ("logging.basicConfig(level='INFO', format='own %(message)s')", ["own a line"]),
        ("logging.basicConfig()", []),
        ("logging.getLogger('gptjax').setLevel('ERROR')", []),
    ],
)
def test_a_script_has_the_lines_unless_it_has_its_own_logging(setup, lines):
    done = run("-c", SCRIPT, setup)
    assert done.returncode == 0 and len(done.stderr.splitlines()) == len(lines)
    for line, pattern in zip(done.stderr.splitlines(), lines, strict=True):
        assert re.fullmatch(pattern, line)


# --- forms of arguments ---

DEBUG = str(ROOT / "configs" / "debug.py")
FORMS = {
    "flag": [f"--config={DEBUG}"],
    "flag and value": ["--config", DEBUG],
    "one dash": [f"-config={DEBUG}"],
    "file": [DEBUG],
    "key": [DEBUG, "seed=7", "optim.learning_rate=3e-4", "sample.prompts=('a=b c',)"],
    "keys before the file": ["seed=7", "--config.model.n_layer=3", DEBUG],
    "key and value": ["--config.seed", "7", "--config", DEBUG, "--config.sample.top_p", "0.5"],
    "switches": [DEBUG, "--config.model.bias", "--noconfig.log.wandb", "log.tensorboard=True"],
    "value with =": [DEBUG, "workdir=runs/a=b c"],
    "of a run": [str(ROOT / "configs" / "workdir.py:run=1"), "seed=7"],
    "name": ["debug", "seed=7"],
    "named flag": ["--config", "debug"],
    "name of a run": ["workdir:run=1", "seed=7"],
    "path, whatever is bundled": ["./rtx4070.py"],
}
DEFAULTS = leaves(json.loads(base.get_config().to_json()))
LEFT_OUT = (
    "note: what run=1/config.json says of the machine it comes from is not used. To use it, add: "
    "--config.allow_cpu=True --config.data.source='data_pipeline/shard/quickstart.parquet' "
    "--config.log.tensorboard=False\n"
)
OF_A_RUN = {"seed": 7, "workdir": "run=1"}
OF_A_RUN |= {key: DEFAULTS[key] for key in MACHINE - {"workdir"}}
SET = {  # by these forms
    "key": {"seed": 7, "optim.learning_rate": 3e-4, "sample.prompts": ["a=b c"]},
    "keys before the file": {"seed": 7, "model.n_layer": 3},
    "key and value": {"seed": 7, "sample.top_p": 0.5},
    "switches": {"model.bias": True, "log.wandb": False, "log.tensorboard": True},
    "value with =": {"workdir": "runs/a=b c"},
    "of a run": OF_A_RUN,
    "name of a run": OF_A_RUN,
    "name": {"seed": 7},
}


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forms")
    (folder / "print_config.py").write_text(PRINT_CONFIG)
    (folder / "run=1").mkdir()
    (folder / "run=1" / "config.json").write_text(debug.get_config().to_json())
    (folder / "rtx4070.py").write_text(Path(DEBUG).read_text())  # a file of the user's
    (folder / "debug").mkdir()  # a name is that of a bundled file, whatever is here
    lines = [["print_config", *arguments] for arguments in FORMS.values()]
    return dict(zip(FORMS, run_all(folder, lines, "import configs.cli"), strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_each_form_of_file_and_keys_is_understood(forms, form):
    status, text, errors = forms[form]
    note = LEFT_OUT if "of a run" in form else ""
    assert (status, errors) == (0, note)
    expected = leaves(json.loads(debug.get_config().to_json())) | SET.get(form, {})
    assert leaves(json.loads(text)) == expected


WITHOUT_CONFIG = {  # with the flags that they need
    "gptjax.generate": ["--workdir=a"],
    "gptjax.chat": ["--workdir=a"],
    "gptjax.evaluate": ["--workdir=a"],
    "gptjax.export": ["--workdir=a", "--out=b"],
    "gptjax.import_hf": ["--source=a", "--workdir=b"],
    "gptjax.serve": ["--workdir=a"],
    "gptjax.report": ["--workdir=a"],
    "gptjax.checkpoint": ["--workdir=a"],
    "gptjax.cli.watch": ["--workdir=a"],
    "gptjax.cli.doctor": [],
    "gptjax.cli.completion": [],
}
MISTAKES = [
    "optim.learnin_rate=1",
    "--max_iters=3",
    "--optim.eps",
    "1e-9",
    "--bias",
    "interval=5",
    "stray",
]


SWEEP = """
from configs import debug
from gptjax.sweep import sweep

def get_config():
    return sweep(base=debug.get_config(), settings={"recipe": {}}, seeds=(1,))
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    """Returns {command: (exit status, stdout, stderr)} of arguments that it does not use."""
    lines = [[command, DEBUG, *MISTAKES] for command in WITH_CONFIG]
    lines += [
        [c, *needed, "stray", "workdir=a", "--", "-x"] for c, needed in WITHOUT_CONFIG.items()
    ]
    sweep = tmp_path_factory.mktemp("sweep") / "rates.py"
    sweep.write_text(SWEEP)
    lines.append(["gptjax.sweep", str(sweep), "jobs=2"])
    light = [line for line in lines if line[0].startswith(LIGHT)]
    lines = [line for line in lines if line not in light]
    results = run_all(tmp_path_factory.mktemp("refusals"), lines)
    results += run_all(tmp_path_factory.mktemp("light"), light, "import configs.cli")
    lines += light
    return {line[0]: result for line, result in zip(lines, results, strict=True)}


@pytest.mark.parametrize("command", WITH_CONFIG)
def test_commands_with_a_configuration_refuse_what_they_do_not_use(refusals, command):
    assert refusals[command] == (
        2,
        "",
        f"""\
error: optim.learnin_rate is not a key of configs/base.py (did you mean optim.learning_rate?)
       --max_iters is no flag (did you mean --config.train.max_iters=3?)
       --optim.eps is no flag (did you mean --config.optim.eps=1e-9?)
       --bias is no flag (did you mean --config.model.bias?)
       interval is not a key of configs/base.py (did you mean report.interval or sample.interval?)
       'stray' is not used: --config is {DEBUG}
""",
    )


def test_a_sweep_takes_its_file_and_no_keys(refusals):
    status, _, errors = refusals["gptjax.sweep"]
    assert status == 2 and errors.splitlines()[1:] == []
    assert re.fullmatch(r"error: 'jobs=2' is not used: --sweep is .*/rates.py", errors.strip())


@pytest.mark.parametrize("command", WITHOUT_CONFIG)
def test_commands_without_a_configuration_refuse_what_they_do_not_use(refusals, command):
    status, text, errors = refusals[command]
    assert status != 0 and not text
    if command == "gptjax.report":  # whose arguments are folders
        assert "error: a has no metrics.jsonl" in errors
    elif command == "gptjax.checkpoint":
        assert "name the command and one run: " in errors
    elif command == "gptjax.cli.completion":
        assert "'workdir=a' is not used" in errors
    else:
        hint = " (did you mean --workdir=a?)" if WITHOUT_CONFIG[command] else ""
        assert errors.splitlines() == [
            "error: 'stray' is not used: see --help",
            f"       'workdir=a' is not used: see --help{hint}",
            "       '-x' is not used: see --help",
        ]


def test_every_command_is_tested_here():
    commands = {path.parent for path in ROOT.glob("gptjax/*/__main__.py")}
    files = [*ROOT.glob("gptjax/*.py"), *ROOT.glob("gptjax/cli/[a-z]*.py")]
    commands |= {path for path in files if 'if __name__ == "__main__"' in path.read_text()}
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in commands}
    assert names == {name for name in COMMANDS if name.startswith("gptjax.")}
    assert names - set(WITH_CONFIG) - set(WITHOUT_CONFIG) == {
        "gptjax.sweep",
        "gptjax.lm_eval_adapter",  # whose arguments lm-eval parses
        "gptjax.cli",
    }


def test_flags_behind_two_dashes_are_refused():
    result = run("-c", PRINT_CONFIG, "configs/debug.py", "--", "--config.seed=7")
    assert result.returncode == 2 and "'--config.seed=7' is not used" in result.stderr
    assert not result.stdout


PRINT_FLAGS = """
from absl import flags
from configs import cli
flags.DEFINE_string("workdir", None, "A folder.", required=True)
flags.DEFINE_multi_string("prompt", [], "")
flags.DEFINE_bool("val", True, "")
flags.DEFINE_integer("top_k", 1, "")
names = ("workdir", "prompt", "val", "top_k")
cli.run_argv(lambda _: print({n: flags.FLAGS[n].value for n in names}), first="workdir")
"""
PLACES = {  # of a folder that stands alone
    "first": ["runs/a", "--prompt=x", "--noval"],
    "last": ["--prompt", "x", "--noval", "runs/a"],
    "between": ["--noval", "runs/a", "--prompt", "x"],
    "named": ["--prompt=x", "--workdir=runs/a", "--noval"],
    "behind dashes": ["--top-k", "2", "runs/a", "--prompt=x", "--noval"],
    "behind dashes, with =": ["--noval", "--top-k=2", "runs/a", "--prompt", "x"],
    "a second one": ["runs/a", "runs/b", "--prompt=x"],
    "beside the flag": ["--workdir", "runs/a", "runs/b"],
    "only a value": ["--prompt", "runs/a"],
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("places")
    (folder / "print_flags.py").write_text(PRINT_FLAGS)
    lines = [["print_flags", *arguments] for arguments in PLACES.values()]
    return dict(zip(PLACES, run_all(folder, lines, "import configs.cli"), strict=True))


@pytest.mark.parametrize("place", PLACES)
def test_a_folder_that_stands_alone_is_the_workdir(places, place):
    status, text, errors = places[place]
    if place in ("a second one", "beside the flag"):
        assert (status, text) == (2, "") and "'runs/b' is not used" in errors
    elif place == "only a value":
        assert (status, text) == (1, "") and "--workdir" in errors
    else:
        assert (status, errors) == (0, "")
        values = {"workdir": "runs/a", "prompt": ["x"], "val": False}
        assert ast.literal_eval(text) == values | {"top_k": 2 if "dashes" in place else 1}
