"""Suffixes of array names have the letters of the dimension key in gptjax/model/__init__.py."""

import ast
import re
from pathlib import Path

import pytest

import gptjax.model

ROOT = Path(__file__).parents[2]
FOLDERS = ("benchmarks", "configs", "data_pipeline", "gptjax", "tests")
KEY = set(re.findall(r"(?<!\S)([A-Z1])  (?=\w)", gptjax.model.__doc__))


def names(tree):
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.arg(arg=name) | ast.Attribute(attr=name):
                yield name
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name


def test_the_key_has_the_letters_of_the_model():
    assert set("BTSDNKHFVLAMC1") <= KEY


@pytest.mark.parametrize("folder", FOLDERS)
def test_suffixes_are_in_the_key(folder):
    unknown = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in (ROOT / folder).rglob("*.py")
        for name in names(ast.parse(path.read_text()))
        if (match := re.fullmatch(r"_?[a-z][a-z0-9_]*_([A-Z0-9]*[A-Z][A-Z0-9]*)", name))
        and not set(match[1]) <= KEY
    }
    assert not unknown, "array names end in a letter an axis: see gptjax/model/__init__.py"
