"""Files of others: limits of size and depth, kinds of files, schemas."""

import json
import os

import pytest

from configs.errors import DataError
from configs.read import mismatch, parse_json, read_bytes, read_json


def test_a_file_is_read_up_to_its_limit(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)
    assert read_bytes(path, 100) == b"x" * 100
    with pytest.raises(DataError, match="file has 100 bytes, over the 99 "):
        read_bytes(path, 99)
    os.truncate(path, 1 << 40)  # sparse: reading it would take all memory
    with pytest.raises(DataError, match="1,099,511,627,776 bytes"):
        read_bytes(path, 100)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (os.mkfifo, "no regular file"),  # opening it would wait for a writer
        (os.mkdir, "Is a directory"),
        (lambda path: path.symlink_to("/dev/zero"), "no regular file"),  # which has no end
        (lambda path: path.symlink_to(path), "Too many levels"),
        (lambda path: None, "No such file"),
    ],
)
def test_what_is_no_file_is_refused_at_once(tmp_path, make, words):
    make(tmp_path / "x")
    with pytest.raises(DataError, match=f"/x.*{words}"):
        read_bytes(tmp_path / "x", 100)


def test_an_unreadable_file_and_a_name_that_no_file_has(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="cannot be read"):
        read_bytes(tmp_path / "a\0b", 100)
    with pytest.raises(DataError, match="File name too long"):
        read_bytes(tmp_path / ("x" * 300), 100)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "x").write_text("{}")
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(DataError, match="x cannot be read: Permission denied"):
        read_bytes(tmp_path / "x", 100)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[" * 65 + "]" * 65,
        '{"a":' * 200_000 + "1" + "}" * 200_000,
        '{"a": "\\ud800"}',
        '["\\udfff\\ud800"]',
        b'"\xff"',
        '{"a": 1} x',
    ],
)
def test_json_that_no_reader_could_use_is_refused(tmp_path, text):
    with pytest.raises(ValueError):
        parse_json(text)
    (tmp_path / "a.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=r"a\.json is damaged: "):
        read_json(tmp_path / "a.json", 1 << 24, object)


def test_other_json_is_what_pythons_is():
    for value in (
        {"a": [1, -2.5, None, True, "\U0001f600\u2028"]},
        "\ud7ff",
        [[[]]],
        2**63 - 1,
        {},
    ):
        assert parse_json(json.dumps(value)) == value == parse_json(json.dumps(value).encode())
    assert parse_json("[" * 64 + "]" * 64)
    assert parse_json("[" + "[]," * 100 + "[]]") == [[]] * 101
    numbers = parse_json(f"[{2**63}, {-(2**63) - 1}, {'9' * 5000}, -{'9' * 5000}, {-(2**63)}]")
    assert numbers == [2.0**63, -(2.0**63), float("inf"), float("-inf"), -(2**63)]
    assert [type(number) for number in numbers] == [float] * 4 + [int]


@pytest.mark.parametrize(
    ("value", "schema", "problem"),
    [
        (1, int, ""),
        (1, float, ""),
        (True, int, "it is true and not a whole number"),
        (True, float, "it is true and not a number"),
        (True, bool, ""),
        (1.0, int, "it is 1.0 and not a whole number"),
        (None, (float, None), ""),
        ("x", (float, None), 'it is "x" and not a number'),
        ("x" * 99, None, f'it is "{"x" * 36}... and not null'),
        ([1, "x"], [int], '[1] is "x" and not a whole number'),
        ([], [int], ""),
        ([1, "x"], [int, str], ""),
        ([1], [int, str], "it has 1 items and not 2"),
        ({"a": {"b": [None]}}, {"a": {"b": [int]}}, "a.b[0] is null and not a whole number"),
        ({"a": 1, "more": 2}, {"a": int}, ""),
        ({"a": 1}, {"a": int, "b": int, "c": int}, "it lacks b, c"),
        ({"a": {}}, {"a": {"b": int}}, "a lacks b"),
        ({"x": 1, "y": "z"}, {str: int}, 'y is "z" and not a whole number'),
        ([], dict, "it is [] and not an object"),
        ([[{}]], object, ""),
        (True, object, ""),
    ],
)
def test_a_value_is_compared_with_its_schema(value, schema, problem):
    assert mismatch(value, schema) == problem
