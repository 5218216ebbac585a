"""Nothing that is read can run: no pickle, no eval, no code but the file that --config names."""

import ast
import json
import shutil
from pathlib import Path

import pytest

from configs.errors import DataError
from data_pipeline.token_store import MANIFEST, TokenStore, write_manifest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    p for folder in ("configs", "data_pipeline", "gptjax") for p in (ROOT / folder).rglob("*.py")
)

# What turns bytes or text into code, by the last part of the name.
CALLS = {
    *("eval", "exec", "compile", "__import__", "import_module", "exec_module", "run_path"),
    *("system", "popen", "Popen", "run_module", "literal_eval", "unsafe_load"),
}
MODULES = {
    *("pickle", "cPickle", "_pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib"),
    *("code", "runpy", "importlib", "subprocess", "yaml", "torch"),
}
HARMLESS = {"re.compile", "lowered.compile"}  # a pattern; a JAX program
# What the modules above are used for, all of it: fixed programs, whether a package is there, and a
# configuration.
FIXED_COMMANDS = {
    "configs/config_file.py": [  # the file that --config, --sweep names
        "importlib.machinery",
        "importlib.util",
        "loader.exec_module",
    ],
    "gptjax/common/nvidia_smi.py": [
        "subprocess",
        """subprocess.run(['nvidia-smi', f"--query-gpu={','.join(fields)}", """
        "'--format=csv,noheader,nounits'])",
    ],
    "gptjax/cli/__main__.py": [  # of a table
        "runpy",
        "runpy.run_module",
        "runpy.run_module(VERBS[verb][0])",
    ],
    "gptjax/cli/doctor.py": [
        "subprocess",
        "subprocess.run([sys.executable, '-c', _PROBE, *sys.path])",
    ],
    "gptjax/cli/machine.py": [
        "importlib.metadata",
        "importlib.metadata.version(_PLUGINS.get(name[0], name[1]))",
        "importlib.metadata.requires('gptjax')",
    ],
    "gptjax/on_ray.py": [
        "subprocess",
        "subprocess.Popen",
        "subprocess.Popen([sys.executable, '-m', 'gptjax.main', *arguments])",
    ],
    "gptjax/train/require_gpu.py": ["importlib.util", "importlib.util.find_spec(name)"],
    "gptjax/sweep/code_version.py": [
        "subprocess",
        """subprocess.run(['git', f"--git-dir={root / '.git'}", 'rev-parse', 'HEAD'])""",
    ],
}


def found_in(tree: ast.AST) -> list[str]:
    """What in a source file could run what it reads; calls with their first argument."""
    assigned = {
        ast.unparse(node.targets[0]): ast.unparse(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom):
            found += [node.module] * (node.module.split(".")[0] in MODULES)
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            name = node.func.id if isinstance(node.func, ast.Name) else name
            whole = ast.unparse(node.func)
            if name in CALLS and whole not in HARMLESS:
                found.append(whole)
            if "." in whole and whole.split(".")[0] in MODULES:
                arguments = [ast.unparse(argument) for argument in node.args[:1]]
                found.append(f"{whole}({', '.join(assigned.get(x, x) for x in arguments)})")
            for keyword in node.keywords:
                value = ast.unparse(keyword.value)
                if keyword.arg == "allow_pickle" and value != "False":
                    found.append(f"allow_pickle={value}")
                if keyword.arg == "shell" and value != "False":
                    found.append(f"shell={value}")
            if whole in ("np.load", "numpy.load"):
                keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
                if keywords.get("allow_pickle", "False") != "False":
                    found.append(whole)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=[str(p.relative_to(ROOT)) for p in SOURCES])
def test_sources_run_nothing_that_they_read(path):
    name = path.relative_to(ROOT).as_posix()
    assert found_in(ast.parse(path.read_text())) == FIXED_COMMANDS.get(name, [])


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "import importlib.util",
        "importlib.util.find_spec(text)",
        "subprocess.run(text)",
        "eval(text)",
        "builtins.exec(text)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "os.system(text)",
        "compile(text, '', 'exec')",
        "f(x, shell=True)",
    ],
)
def test_the_search_finds(line):
    assert len(found_in(ast.parse(line))) >= 1
    assert found_in(ast.parse("re.compile(text); np.load(path); model.apply(x)")) == []


@pytest.fixture
def hostile(store, tmp_path):
    """A copy of the store whose manifest the test may change; outside lies what it must not get."""
    folder = Path(shutil.copytree(store.path, tmp_path / "store"))
    (tmp_path / "outside").write_bytes(b"secret")

    def open_with(change):
        manifest = json.loads((folder / MANIFEST).read_text())
        change(manifest, folder)
        write_manifest(folder, manifest)
        return TokenStore.open(folder)

    return open_with


def named(name):
    def change(manifest, folder):
        manifest["files"][name] = {"size_bytes": 6, "sha256": "0" * 64}

    return change


def link_to(target, size=None):
    """Puts a symbolic link in the place of a token file."""

    def change(manifest, folder):
        name = "00000-train.tokens"
        (folder / name).unlink()
        (folder / name).symlink_to(target)
        manifest["files"][name]["size_bytes"] = (folder / name).stat().st_size

    return change


def piece_named(name):
    def change(manifest, folder):
        manifest["pieces"][0]["train"]["documents"] = name

    return change


@pytest.mark.parametrize(
    "change",
    [
        named("../outside"),
        named("./../outside"),
        named("sub/../../outside"),
        named("/etc/hostname"),
        named("/../outside"),
        named(".."),
        named("."),
        named(""),
        named("a\x00b"),
        link_to("../outside"),
        link_to("/etc/hostname"),
        link_to("tokenizer.model"),
    ],
)
def test_names_in_a_manifest_cannot_leave_its_folder(hostile, change):
    with pytest.raises(DataError):
        hostile(change)


@pytest.mark.parametrize("value", ["1", None, -1, 1.5, [], 10**30])
def test_counts_in_a_manifest_are_no_way_in_either(hostile, value):
    with pytest.raises(DataError):
        hostile(piece_named(value)).split("train")
