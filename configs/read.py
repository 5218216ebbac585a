"""Reads what others may have written: regular files, within a limit; JSON, against its schema.

A schema is a type (int is a float, too; true is no int; object is any), a tuple of alternatives,
None for null, [schema] for a list, [schema, schema, ...] for one of this length, {str: schema} for
an object with any keys, or {key: schema, ...} for one that has these keys, and perhaps others.
"""

import io
import itertools
import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from configs.errors import DataError

MIB = 1 << 20
_MAX_DEPTH = 64  # of JSON: far from the depth at which functions that call themselves fail
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_bytes(path: Path, limit: int) -> bytes:
    """Returns the content of a file of at most `limit` bytes.

    Raises:
      DataError: it cannot be read, is larger, or is a pipe, a device or a folder.
    """
    try:
        # Without O_NONBLOCK, opening a pipe waits for its writer.
        with open(path, "rb", opener=lambda p, flags: os.open(p, flags | os.O_NONBLOCK)) as f:
            status = os.fstat(f.fileno())
            is_file = stat.S_ISREG(status.st_mode)
            data = f.read(limit + 1) if is_file and status.st_size <= limit else b""
    except (OSError, ValueError) as error:  # ValueError: of a path that no file can have
        raise DataError(f"{path} cannot be read: {os_reason(error)}.") from error
    if not is_file:
        raise DataError(f"{path} is no regular file.")
    if (size := max(len(data), status.st_size)) > limit:
        raise DataError(f"{path} has {size:,} bytes, over the {limit:,} that such a file can need.")
    return data


def read_json(path: Path, limit: int, schema: Any = dict) -> Any:
    """Returns the JSON value in a file of at most `limit` bytes.

    Raises:
      DataError: as `read_bytes`; or the file is not `parse_json`'s, or not as `schema` says.
    """
    data = read_bytes(path, limit)
    try:
        value = parse_json(data)
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}.") from error
    if problem := mismatch(value, schema):
        raise DataError(f"{path} is damaged: {problem}.")
    return value


def read_json_lines(path: Path, limit: int) -> Iterator[tuple[str, Any]]:
    """Yields (text, JSON value) of each line of a file of at most `limit` bytes; None: not JSON.

    Raises:
      DataError: as `read_bytes`.
    """
    for line in io.BytesIO(read_bytes(path, limit)):
        try:
            value = parse_json(line)
        except ValueError:
            value = None
        yield line.decode(errors="replace").rstrip("\n"), value


def parse_json(text: str | bytes) -> Any:
    """Returns a JSON value; numbers beyond 64 bits become floats.

    Raises:
      ValueError: it is no JSON in UTF-8, nests too deeply, or has half of a surrogate pair, which
        no UTF-8 can hold.
    """
    text = text.decode() if isinstance(text, bytes) else text
    try:
        value = json.loads(text, parse_int=_number)
    except RecursionError:
        raise ValueError("it nests too deeply") from None
    if text.count("[") + text.count("{") > _MAX_DEPTH and _deeper(value, _MAX_DEPTH):
        raise ValueError("it nests too deeply")
    if _SURROGATE.search(text):
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _number(digits: str) -> int | float:
    if len(digits) > 20:
        return float(digits)
    number = int(digits)
    return number if -(1 << 63) <= number < 1 << 63 else float(number)


def _deeper(value: Any, depth: int) -> bool:
    level = [value]
    for _ in range(depth):
        nested = [x for x in level if isinstance(x, dict | list)]
        level = [y for x in nested for y in (x.values() if isinstance(x, dict) else x)]
    return bool(level)


def mismatch(value: Any, schema: Any, name: str = "") -> str:
    """Returns a phrase for the first part of a JSON value that is not as `schema` says, or ""."""
    if isinstance(schema, tuple):
        problems = [mismatch(value, alternative, name) for alternative in schema]
        return "" if "" in problems else problems[0]
    kind = type(schema) if isinstance(schema, dict | list) else schema or type(None)
    if kind is object:
        return ""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        if not (kind is float and type(value) is int):
            return f"{name or 'it'} is {_brief(value)} and not {_NAMES[kind]}"
    children: list[tuple[Any, Any, str]] = []
    if isinstance(schema, list):
        if 1 < len(schema) != len(value):
            return f"{name or 'it'} has {len(value)} items and not {len(schema)}"
        schemas = itertools.cycle(schema)
        children = [(item, next(schemas), f"{name}[{i}]") for i, item in enumerate(value)]
    elif isinstance(schema, dict) and str in schema:
        children = [(item, schema[str], f"{name}.{key}") for key, item in value.items()]
    elif isinstance(schema, dict):
        if missing := [key for key in schema if key not in value]:
            return f"{name or 'it'} lacks {', '.join(missing)}"
        children = [(value[key], item, f"{name}.{key}") for key, item in schema.items()]
    found = (mismatch(item, of, place.lstrip(".")) for item, of, place in children)
    return next(filter(None, found), "")


_NAMES = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def os_reason(error: BaseException) -> str:
    """Returns the reason of an OSError without the file's name; other errors as they are."""
    return getattr(error, "strerror", None) or str(error)
