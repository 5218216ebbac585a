"""Configuration files with mistakes, and what is said about them."""

import sys

import pytest

from configs import config_file
from configs.errors import UserError

GOOD = """\
from __future__ import annotations

import dataclasses

from configs import debug


@dataclasses.dataclass
class Rates:  # whose annotations are texts, which are looked up in the module
    peak: float = 0.25


def get_config(steps="7"):
    config = debug.get_config()
    config.optim.learning_rate = Rates().peak
    config.train.max_iters = int(steps)
    return config
"""


def load(tmp_path, monkeypatch, text, *arguments):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_bytes(text.encode() if isinstance(text, str) else text)
    return config_file.load("mine.py", *arguments)


def test_a_file_imports_what_is_beside_it_in_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "beside_mine.py").write_text("STEPS = 9\n")
    (tmp_path / "json.py").write_text("raise SystemExit\n")  # hides no module
    before = list(sys.path)
    text = "import json\nimport beside_mine\n" + GOOD.replace("int(steps)", "beside_mine.STEPS")
    text = text.replace("from __future__ import annotations\n", "")
    config = load(tmp_path, monkeypatch, text)
    assert config.train.max_iters == 9 and sys.path == before


@pytest.mark.parametrize(("arguments", "steps"), [((), 7), (("3",), 3)])
def test_a_file_is_executed(tmp_path, monkeypatch, arguments, steps):
    config = load(tmp_path, monkeypatch, GOOD, *arguments)
    assert (config.optim.learning_rate, config.train.max_iters) == (0.25, steps)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\nsettings = {\n", "mine.py, line 2: '{' was never closed: settings = {"),
        ("def get_config():\nreturn 1\n", r"mine.py, line 2: expected an indented .*: return 1"),
        (b"x = 1\n\ny = '\xff'\n", "mine.py.*: .*utf-8.*"),
        ("x = 1\0\n", "mine.py.*: source code .* null bytes.*"),
        ("import base2\n", r"mine.py, line 1: ModuleNotFoundError: No module named 'base2'\n\n.*"),
        ("", "mine.py has no function get_config.*"),
        ("def get_config():\n    pass\n", "mine.py: get_config.. returns None and no ConfigDict."),
        ("def get_config(run):\n    pass\n", "mine.py: TypeError: .*missing 1 .*'run'"),
    ],
)
def test_a_mistake_is_one_paragraph_with_its_line(tmp_path, monkeypatch, text, message):
    with pytest.raises(UserError, match=rf"(?s)\A{message}\Z"):
        load(tmp_path, monkeypatch, text)


IN_ANOTHER_FILE = """\
import json

def get_config():
    return read("{")

def read(text):
    return json.loads(text)
"""


def test_an_error_of_what_a_file_calls_has_the_files_line_and_the_traceback_from_there(
    tmp_path, monkeypatch
):
    with pytest.raises(UserError) as caught:
        load(tmp_path, monkeypatch, IN_ANOTHER_FILE)
    first, empty, title, *frames = str(caught.value).splitlines()
    assert first.startswith("mine.py, line 7: JSONDecodeError: Expecting property name")
    assert (empty, title) == ("", "Traceback (most recent call last):")
    files = [frame.split('"')[1] for frame in frames if frame.startswith('  File "')]
    assert files[:2] == ["mine.py", "mine.py"] and files[2].endswith("/json/__init__.py")
    assert frames[-1].startswith("json.decoder.JSONDecodeError: ")


def test_a_syntax_error_of_an_imported_file_names_that_file(tmp_path, monkeypatch):
    (tmp_path / "rates_of_mine.py").write_text("a = 1\nb = (\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"\A.*/rates_of_mine.py, line 2: '\(' was never closed: "):
        load(tmp_path, monkeypatch, "import rates_of_mine\n")


def test_errors_for_people_stay_as_they_are(tmp_path, monkeypatch):
    text = "from configs.errors import UserError\nraise UserError('name a run')\n"
    with pytest.raises(UserError, match=r"\Aname a run\Z"):
        load(tmp_path, monkeypatch, text)
