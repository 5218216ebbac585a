"""Random changes of bytes and of JSON, drawn with a seed."""

import json
import random
from collections.abc import Iterator
from typing import Any

DEEP = "[" * 100_000 + "]" * 100_000
LONG_NUMBER = "9" * 5000

# Texts that replace a value of a JSON file.
_VALUES = (
    *("null", "true", "false", "0", "-1", "1", "2.5", "-0.0", "1e400", "-1e400", "NaN", "1e-320"),
    *("9223372036854775807", "18446744073709551616", "4294967296", "1e18", LONG_NUMBER),
    *('""', '"x"', '"\\ud800"', '"\\u0000"', '"../../etc/passwd"', '"9"', f'"{"x" * 100_000}"'),
    *("[]", "{}", "[[]]", "[null]", "[-1]", "[1, 2, 3]", '{"x": {}}', "[" * 400 + "]" * 400, DEEP),
    *("[1e9, 1e9]", "[4294967296]", "[1048576, 1048576, 64]", '["x"]'),
)
_NUMBERS = (0, 1, 1 << 31, (1 << 31) - 1, 1 << 62, (1 << 64) - 1)
_CHARACTERS = (b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"\0", b"\xff", b"\n", b"9", b"-")


def bytes_changed(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Returns (what was done, the changed bytes)."""
    kind = rng.choice(("bit", "bit", "byte", "bytes", "cut", "delete", "repeat", "number", "grow"))
    new, n = bytearray(data), len(data)
    # Half of all changes come near one of the ends, where formats keep their headers.
    at = rng.randrange(n) if rng.random() < 0.5 else rng.choice((1, -1)) * rng.randrange(min(n, 64))
    at %= n
    if kind == "bit":
        new[at] ^= 1 << rng.randrange(8)
    elif kind == "byte":
        new[at : at + 1] = rng.choice(_CHARACTERS)
    elif kind == "bytes":
        new[at : at + 8] = rng.randbytes(8)
    elif kind == "cut":
        del new[at:]
    elif kind == "delete":
        del new[at : at + rng.randrange(1, 100)]
    elif kind == "repeat":
        new[at:at] = new[at : at + rng.randrange(1, 100)] * rng.randrange(1, 10)
    elif kind == "number":
        new[at : at + 8] = rng.choice(_NUMBERS).to_bytes(8, "little")
    else:
        new += rng.randbytes(rng.randrange(1, 1000))
    return f"{kind} at {at} of {n}", bytes(new)


def json_changed(text: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Returns (what was done, the text with a value replaced, a key removed, added or renamed)."""
    tree = json.loads(text)
    parent, key = rng.choice(list(_places(tree)))
    kind = rng.choice(("replace", "replace", "replace", "remove", "rename", "add"))
    mark, value = "#hostile#", rng.choice(_VALUES)
    if kind == "remove":
        del parent[key]
    elif kind == "rename" and isinstance(parent, dict):
        parent[rng.choice(("", "x", "a.b", "\0", "update", "__class__", "../x"))] = parent.pop(key)
    elif kind == "add" and isinstance(parent, dict):
        parent[rng.choice(("", "x", "a.b", "items", "__class__", "../x"))] = mark
    else:
        kind = "replace"
        parent[key] = mark
    changed = json.dumps(tree).replace(json.dumps(mark), value)
    return f"{kind} {key!r} {value[:30]}", changed.encode()


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    keys = range(len(tree)) if isinstance(tree, list) else tree if isinstance(tree, dict) else ()
    for key in keys:
        yield tree, key
        yield from _places(tree[key])
