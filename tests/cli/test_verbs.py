"""The command `gptjax`: its verbs, its own options, what it refuses."""

import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gptjax import __version__
from gptjax.cli import __main__ as command
from gptjax.cli.completion import script
from gptjax.cli.verbs import VERBS, WITH_CONFIG

ROOT = Path(__file__).parents[2]


def run(monkeypatch, *arguments):
    """Returns (module and arguments that the command runs, its exit status)."""
    started = []

    def run_module(module, *, run_name, alter_sys):
        assert run_name == "__main__" and alter_sys
        started.append((module, sys.argv[1:]))

    monkeypatch.setattr(runpy, "run_module", run_module)
    monkeypatch.setattr(sys, "argv", ["gptjax", *arguments])
    try:
        command.main()
    except SystemExit as stop:
        return started, stop.code
    return started, 0


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_runs_its_module_with_all_its_arguments(monkeypatch, verb):
    arguments = ["debug", "seed=1", "--help"]
    assert run(monkeypatch, verb, *arguments) == ([(VERBS[verb][0], arguments)], 0)


def test_every_module_of_a_verb_can_be_run():
    for module, _ in VERBS.values():
        path = ROOT / module.replace(".", "/")
        file = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
        assert 'if __name__ == "__main__":' in file.read_text()


def test_the_verbs_with_a_configuration_define_it():
    for verb, (module, _) in VERBS.items():
        path = ROOT / module.replace(".", "/")
        file = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
        text = file.read_text().replace('define_config("sweep"', "")
        assert ("define_config(" in text.rpartition("__main__")[2]) == (verb in WITH_CONFIG), verb


def test_the_usage_has_all_verbs_and_imports_no_jax():
    code = (
        "import sys; from gptjax.cli.__main__ import main; main(); assert 'jax' not in sys.modules"
    )
    code += "; assert 'absl' not in sys.modules"
    for option in ([], ["--help"]):
        command = [sys.executable, "-c", code, *option]
        text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert [line.split()[0] for line in text.splitlines() if line.startswith("  ")] == [
            "gptjax",
            *VERBS,
        ]


def test_the_version(monkeypatch, capsys):
    assert run(monkeypatch, "--version") == ([], 0)
    assert capsys.readouterr().out == f"gptjax {__version__}\n"


def test_an_unknown_verb_is_refused_with_the_nearest(monkeypatch, capsys):
    assert run(monkeypatch, "evalute", "runs/a") == ([], 2)
    assert "'evalute' is no verb (did you mean evaluate?)" in capsys.readouterr().err


def test_native_windows_is_refused_by_name(monkeypatch, capsys):
    monkeypatch.setattr(sys, "platform", "win32")
    assert run(monkeypatch, "train", "debug") == ([], 2)
    assert "native Windows" in capsys.readouterr().err
    assert run(monkeypatch, "doctor") == ([("gptjax.cli.doctor", [])], 0)


def completed(line):
    """What bash completes at the end of a line."""
    words = line.split(" ")
    code = f"""
{script("bash")}
COMP_WORDS=({line}) COMP_CWORD={len(words) - 1}
_gptjax gptjax "{words[-1]}"
echo "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_bash_completes_verbs_names_and_keys():
    assert completed("gptjax che") == ["checkpoint"]
    assert completed("gptjax train rtx4070_") == ["rtx4070_110m", "rtx4070_best"]
    assert completed("gptjax plan optim.learn") == ["optim.learning_rate="]
    assert completed("gptjax train --q") == ["--quiet"]
    assert completed("gptjax generate ru") == []  # then files


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_scripts_of_other_shells_have_the_same_words(shell):
    text = script(shell)
    for word in (*VERBS, "rtx4070_best", "optim.learning_rate="):
        assert word in text
    assert "%(" not in text


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_zsh_completes_verbs_names_keys_and_files():
    """What its functions are called with, where no terminal asks."""
    code = """
autoload() { }; compinit() { }; compdef() { echo "$@"; }
compadd() { echo compadd "$@"; }; _files() { echo files; }
eval "$1"
for line in "gptjax che" "gptjax plan optim." "gptjax plan --q" "gptjax generate ru"; do
  words=(${=line}) CURRENT=${#words}
  echo "$line"
  _gptjax
done
"""
    command = ["zsh", "-f", "-c", code, "zsh", script("zsh")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    names, keys = "compadd -- base chat debug ", "compadd -S  -- allow_cpu= "
    verbs = f"compadd -- {' '.join(VERBS)} --help --version"
    lines = iter(done.stdout.splitlines())
    assert [next(lines) for _ in range(3)] == ["_gptjax gptjax", "gptjax che", verbs]
    for line, options in (("optim.", []), ("--q", ["compadd -- --help --quiet"])):
        assert next(lines) == f"gptjax plan {line}"
        assert next(lines).startswith(names) and next(lines).startswith(keys)
        assert [next(lines) for _ in [*options, "files"]] == [*options, "files"]
    assert list(lines) == ["gptjax generate ru", "files"]


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
def test_fish_completes_verbs_names_and_keys(tmp_path):
    (tmp_path / "runs").mkdir()
    code = f"{script('fish')}\ncomplete -C $argv[1]"

    def found(line):
        command = ["fish", "-N", "-c", code, line]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        return [line.partition("\t")[0] for line in done.stdout.splitlines()]

    assert found("gptjax che") == ["checkpoint"]
    assert found("gptjax train rtx4070_") == ["rtx4070_110m", "rtx4070_best"]
    assert found("gptjax plan optim.learn") == ["optim.learning_rate="]
    assert found("gptjax train --q") == ["--quiet"]
    assert found("gptjax generate ru") == ["runs/"]
