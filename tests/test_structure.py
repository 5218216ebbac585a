"""What the import contract of pyproject.toml (`lint-imports`) does not see."""

import ast
from pathlib import Path

import mutants
import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("configs", "data_pipeline", "gptjax")
COMMANDS = {"gptjax/main.py", "gptjax/generate.py", "gptjax/export.py", "gptjax/import_hf.py"}
COMMANDS |= {"gptjax/chat.py", "gptjax/on_ray.py", "gptjax/lm_eval_adapter.py"}
COMMANDS |= {f"gptjax/cli/{verb}.py" for verb in ("completion", "doctor", "watch")}
COMMANDS |= {"data_pipeline/prepare.py", "data_pipeline/browse.py"}
SOURCES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}
TREES = {name: ast.parse(text) for name, text in SOURCES.items()}


def is_command(name: str) -> bool:
    return name in COMMANDS or name.endswith("/__main__.py")


def test_no_file_is_long():
    """One idea a file: most need half as much."""
    lengths = {name: text.count("\n") for name, text in SOURCES.items()}
    assert not {name: n for name, n in lengths.items() if n > 350}


def test_the_table_of_mutants_is_up_to_date():
    assert mutants.stale() == []


def test_every_package_has_a_purpose_and_several_files():
    folders = [path for path in (ROOT / "gptjax").iterdir() if (path / "__init__.py").exists()]
    assert 10 < len(folders) <= 16
    for folder in folders:
        assert ast.get_docstring(TREES[f"gptjax/{folder.name}/__init__.py"]), folder
        assert len(list(folder.glob("*.py"))) > 2, f"{folder} is a package of one file"
    loose = {path.relative_to(ROOT).as_posix() for path in (ROOT / "gptjax").glob("*.py")}
    allowed = COMMANDS | {"gptjax/__init__.py", "gptjax/api.py"}
    assert loose <= allowed, "a module of gptjax is a command, or belongs in a package"


def test_commands_are_the_files_that_can_be_run():
    runnable = {
        name
        for name, tree in TREES.items()
        if any(isinstance(n, ast.If) and "__main__" in ast.unparse(n.test) for n in tree.body)
    }
    assert runnable == {name for name in TREES if is_command(name)}


@pytest.mark.parametrize("name", TREES)
def test_imports_are_absolute_and_never_of_tests(name):
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            assert node.module.partition(".")[0] not in ("tests", "conftest", "helpers", "pytest")


@pytest.mark.parametrize("name", [name for name in TREES if not is_command(name)])
def test_only_commands_print(name):
    """The rest logs; configs/cli.py reports errors before logging is set up."""
    calls = (n for n in ast.walk(TREES[name]) if isinstance(n, ast.Call))
    printing = [n.lineno for n in calls if ast.unparse(n.func) == "print"]
    assert not printing or name == "configs/cli.py", "use logging"
