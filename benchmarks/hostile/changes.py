"""Kinds of files, and changes of good ones by hand."""

import dataclasses
import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.hostile.mutations import DEEP
from benchmarks.hostile.sources import Sources

Make = Callable[[Path], Any]  # changes the copy of the good folder


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of file."""

    good: Callable[["Sources"], Path]  # returns the good folder
    targets: str  # pattern of the files that are mutated
    use: Callable[[Path, "Sources"], Any]  # opens the folder as the commands do
    right: Callable[[Path, "Sources", Any], bool]  # whether what `use` returned is right
    by_hand: dict[str, Make]


def text(name: str, content: str | bytes) -> Make:
    """Returns a change that writes a whole file."""
    data = content.encode() if isinstance(content, str) else content
    return _replace(name, lambda path: path.write_bytes(data))


def edit(name: str, change: Callable[[Any], Any]) -> Make:
    """Returns a change of the value of a JSON file, which has the right digest again."""

    def make(folder: Path) -> None:
        tree = json.loads((folder / name).read_text())
        change(tree)
        (folder / name).write_text(json.dumps(tree))
        seal(folder / name)

    return make


def seal(path: Path) -> None:
    """Corrects the digest that a meta or a manifest has of itself, as a stranger can."""
    try:
        tree = json.loads(path.read_text())
        if isinstance(tree, dict) and tree.pop("sha256", None) is not None:
            digest = hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
            path.write_text(json.dumps({**tree, "sha256": digest}))
    except (ValueError, RecursionError):  # no JSON any more
        pass


def put(name: str, dotted: str, value: Any) -> Make:
    """Returns a change of one value of a JSON file."""

    def change(tree: Any) -> None:
        *parents, key = dotted.split("/")
        for parent in parents:
            tree = tree[int(parent) if isinstance(tree, list) else parent]
        tree[int(key) if isinstance(tree, list) else key] = value

    return edit(name, change)


def _replace(name: str, make: Callable[[Path], Any]) -> Make:
    def change(folder: Path) -> None:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        make(path)

    return change


def _sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 40 << 30)


def special(name: str) -> dict[str, Make]:
    """Returns changes that put something else in the place of a file."""
    return {
        f"{name}: pipe": _replace(name, os.mkfifo),
        f"{name}: folder": _replace(name, os.mkdir),
        f"{name}: missing": _replace(name, lambda path: None),
        f"{name}: empty": _replace(name, lambda path: path.write_bytes(b"")),
        f"{name}: loop of links": _replace(name, lambda path: path.symlink_to(path.name)),
        f"{name}: endless device": _replace(name, lambda path: path.symlink_to("/dev/zero")),
        f"{name}: 40 GB, sparse": _replace(name, _sparse),
        f"{name}: deep": text(name, DEEP),
        f"{name}: binary": text(name, random.Random(0).randbytes(1000)),
    }
