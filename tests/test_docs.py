"""README and docs/ are true: their commands run and print what is shown, what they name exists.

Fenced blocks `console` and `pycon` are executed in a copy of the checkout. Output is compared by
its shape: any number stands for any number, `...` for any text. Words behind the language say how a
block is run: slow (`make test-slow`), fails (exit status not 0), background (its first command is a
server), network (not run), shared (needs files beside the checkout), and the extra that it needs.
A block `python NAME` is the file NAME there, which commands use.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest

from configs import base
from configs.validate import leaves
from gptjax.cli.verbs import VERBS

ROOT = Path(__file__).parents[1]
DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text() for path in DOCS}
EXTRAS = {
    "target": ("jax_cuda12_plugin",),
    "export": ("tokenizers", "safetensors", "gguf"),
    "lmeval": ("lm_eval",),
    "clients": ("transformers", "xllamacpp", "openai"),
    "ray": ("ray",),
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
}
FLAGS = {"slow", "fails", "background", "network", "shared", *EXTRAS}
BLOCK = re.compile(r"^( *)```(\w+)([^\n]*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
# What XLA's plugin for CUDA (the extra `target`) writes where there is no GPU, and the lines of
# progress that stand for the bar of a terminal, which vanishes.
NOISE = re.compile(
    r"^((WARNING: All log messages before absl|I0000 ).*"
    r"|\d\d:\d\d:\d\d [^:\n]+: [\d,]+ of [\d,]+ \w+, [\d,.]+( MB)?/s, [\dhms ]+ left"
    r"|\d\d:\d\d:\d\d [^:\n]+: (\d+[hms] ?)+(\([\dhms ]+ the last time\))?)\n",
    re.MULTILINE,
)
NUMBER = re.compile(r"\d[\d,.:]*(?:e[+-]?\d+)?")


class Block(NamedTuple):
    file: str
    line: int
    language: str
    flags: frozenset[str]
    text: str


def blocks_of(file: str) -> list[Block]:
    found = []
    for match in BLOCK.finditer(TEXTS[file]):
        indent, language, flags, text = match.groups()
        line = TEXTS[file].count("\n", 0, match.start()) + 1
        text = re.sub(f"^{indent}", "", text, flags=re.MULTILINE)
        found.append(Block(file, line, language, frozenset(flags.split()), text))
    return found


BLOCKS = [block for file in TEXTS for block in blocks_of(file)]
FILES = [block for block in BLOCKS if block.language == "python"]
EXECUTED = [block for block in BLOCKS if block not in FILES and "network" not in block.flags]


def cases(*, slow: bool) -> list:
    chosen = [block for block in EXECUTED if ("slow" in block.flags) == slow]
    return [pytest.param(block, id=f"{block.file}:{block.line}") for block in chosen]


def assert_shape(output: str, expected: str) -> None:
    """The whole output is as expected, but for numbers, white space and what `...` stands for."""
    chunks = [" ".join(chunk.split()) for chunk in expected.split("...")]
    texts = [NUMBER.pattern.join(map(re.escape, NUMBER.split(chunk))) for chunk in chunks]
    pattern = " ?.*? ?".join(texts)
    output = " ".join(output.split())
    assert re.fullmatch(pattern, output), f"{output}\n is not of the shape\n{pattern}"


def commands_of(block: Block) -> list[tuple[str, str]]:
    pairs = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            pairs.append((line[2:], []))
        else:
            pairs[-1][1].append(line)
    return [(command, "\n".join(output)) for command, output in pairs]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the checkout; `python` and `make` use the environment of this test run."""
    folder = tmp_path_factory.mktemp("docs") / "gptjax"
    ignored = shutil.ignore_patterns(".venv", ".git", "runs", "data", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, folder, ignore=ignored)
    (folder / ".venv").symlink_to(Path(sys.prefix))
    command = folder / "bin" / "gptjax"  # of this copy, whatever is installed
    command.parent.mkdir()
    command.write_text('#!/bin/sh\nexec python -m gptjax.cli "$@"\n')
    command.chmod(0o755)
    for file in FILES:
        (folder / next(iter(file.flags))).write_text(file.text)
    servers = []
    yield folder, servers
    for server in servers:
        server.terminate()
        server.wait(timeout=60)


def environment(folder: Path) -> dict[str, str]:
    """That of a reader's shell: what make passes to its own children is left out."""
    made = ("ARGS", "MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    inherited = {name: value for name, value in os.environ.items() if name not in made}
    path = f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return inherited | {"PATH": path, "PYTHONPATH": str(folder)}


def run_block(block: Block, folder: Path, servers: list) -> None:
    for extra in block.flags & EXTRAS.keys():
        for module in EXTRAS[extra]:
            pytest.importorskip(module, reason=f"needs the extra {extra}")
    if "shared" in block.flags:
        data = ROOT / ".." / "shared" / "eval"
        if not data.is_dir():
            pytest.skip("needs the benchmarks of ../shared/eval")
        (folder / "eval").symlink_to(data.resolve())
    if block.language == "pycon":
        code = "import doctest, sys; print(doctest.testfile(sys.argv[1], module_relative=False))"
        (folder / "block.txt").write_text(block.text)
        command = [sys.executable, "-c", code, "block.txt"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
        assert "TestResults(failed=0, attempted=" in done.stdout, done.stdout + done.stderr
        return
    for i, (command, expected) in enumerate(commands_of(block)):
        if "background" in block.flags and i == 0:
            log = folder / "server.log"
            with log.open("wb") as out:
                start = ["bash", "-c", f"exec {command}"]
                servers.append(
                    subprocess.Popen(
                        start, cwd=folder, stdout=out, stderr=out, env=environment(folder)
                    )
                )
            while not (output := NOISE.sub("", log.read_text())):
                assert servers[-1].poll() is None
                time.sleep(0.2)
        else:
            done = subprocess.run(
                ["bash", "-c", command],
                cwd=folder,
                env=environment(folder),
                text=True,
                timeout=900,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            output = done.stdout
            assert (done.returncode != 0) == ("fails" in block.flags), output
        assert_shape(NOISE.sub("", output), expected)


@pytest.mark.parametrize("block", cases(slow=False))
def test_block(block, checkout):
    run_block(block, *checkout)


@pytest.mark.slow
@pytest.mark.parametrize("block", cases(slow=True))
def test_slow_block(block, checkout):
    """In the order of the documents: README's quickstart trains the model that others use."""
    run_block(block, *checkout)


def test_blocks_say_how_they_are_run():
    for block in BLOCKS:
        where = f"{block.file}:{block.line}"
        if block.language == "python":
            (name,) = block.flags
            assert re.fullmatch(r"\w+\.py", name), where
            assert re.search(rf"^\$ gptjax .*\b{name}\b", TEXTS[block.file], re.MULTILINE), where
            continue
        assert block.language in ("console", "pycon"), f"{where}: only what is executed is fenced"
        assert block.flags <= FLAGS, where
    not_run = [c for b in BLOCKS if "network" in b.flags for c, _ in commands_of(b)]
    assert len(not_run) == 6  # downloads
    assert all(re.match("hf|mkdir|.*(source='?hf://|--tasks )", command) for command in not_run)


def test_modules_are_named_by_their_verbs():
    """`python -m` is for benchmarks; README says once that there is another form."""
    for file, text in TEXTS.items():
        modules = re.findall(r"python -m (?!benchmarks)[\w.]+", text)
        assert modules == (["python -m gptjax.main"] if file == "README.md" else []), file


@pytest.mark.parametrize("file", TEXTS)
def test_what_can_run_here_is_run(file):
    """Commands outside blocks are for what no test has: a cluster, a bucket."""
    outside = re.findall(r"^ {4}gptjax .*", BLOCK.sub("", TEXTS[file]), re.MULTILINE)
    assert all("BUCKET" in command for command in outside), outside


def test_every_extra_is_explained():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    table = set(re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", TEXTS["docs/install.md"], re.MULTILINE))
    named = {name for row in table for name in re.findall(r"\w+", row)}
    assert named == set(declared["optional-dependencies"]) - {"clients"}


def test_the_shape_of_an_output():
    for expected, output in (
        ("loss 5.12 ± 0.04 | ...", "loss 4.9  ± 1 | more\nlines"),
        ("...\nstep 20/20 | x", "step 7/9 | x\n"),
        ("a\n...\nb", "a\nb"),
    ):
        assert_shape(output, expected)
    for expected, output in (
        ("loss 5.12", "loss n/a"),
        ("a 1 b", "a 1 c"),
        ("...\nlast 1", "first\nlast 1\nmore"),
    ):
        with pytest.raises(AssertionError, match="is not of the shape"):
            assert_shape(output, expected)


def test_what_no_terminal_shows_is_not_compared():
    line = "12:50:11 val: 114,492 of 142,396 tokens, 11,262/s, 3s left\n"
    waiting = "12:50:11 compiling the step: 1m 30s\n12:51:11 a: 30s (2m 05s the last time)\n"
    kept = "12:50:11 val: 3 of 4 documents are empty\n12:50:11 runs/a: done in 30s\n"
    assert NOISE.sub("", f"a\n{line}{kept}{waiting}b\n") == f"a\n{kept}b\n"


@pytest.mark.parametrize("file", TEXTS)
def test_what_is_named_exists(file):
    text = TEXTS[file]
    for module in set(re.findall(r"python -m ((?:gptjax|data_pipeline|benchmarks)[\w.]*)", text)):
        assert importlib.util.find_spec(module), module
    verbs = set(re.findall(r"(?:`|\$ |^    )gptjax ([a-z][a-z-]*)", text, re.MULTILINE))
    assert verbs <= set(VERBS), verbs - set(VERBS)
    for path in set(
        re.findall(
            r"`((?:configs|data_pipeline|gptjax|tests|benchmarks|docs|examples)/[\w/.]*)`", text
        )
    ):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"\]\(([\w./-]+)\)", text):
        assert (ROOT / file).parent.joinpath(path).exists(), path
    keys = set(leaves(base.get_config()))
    for key in set(re.findall(r"--config\.([\w.]+)", text)):
        assert key in keys or key == "optim.learnin_rate", key
    groups = {key.partition(".")[0] for key in keys if "." in key}
    for key in set(re.findall(rf"`((?:{'|'.join(groups)})\.\w+)", text)):
        assert key in keys or key in ("tokenizer.model", "tokenizer.json"), key


def test_the_readme_is_short():
    readme = TEXTS["README.md"]
    assert readme.count("\n") <= 170 and len(readme.split()) <= 1500
