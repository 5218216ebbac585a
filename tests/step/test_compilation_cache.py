"""The cache of compiled programs: incomplete entries go, the others are read by JAX alone."""

import os
import zlib
from pathlib import Path

import jax
import pytest

from gptjax.step import compilation_cache
from gptjax.step.compilation_cache import keep_compiled

LONG_AGO = 1_600_000_000.0  # seconds since 1970


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    (tmp_path / "compiled").mkdir()
    return tmp_path / "compiled"


@pytest.fixture
def reads(monkeypatch):
    """The names of the files that are read whole."""
    names, real = [], Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda p: names.append(p.name) or real(p))
    return names


def entry(folder, name, *, size=1000, used=LONG_AGO, cut=0):
    data = zlib.compress(os.urandom(size), level=0)
    path = folder / f"{name}-cache"
    path.write_bytes(data[: len(data) - cut])
    os.utime(path, (used, used))
    return path


def names(folder):
    return {path.name.removesuffix("-cache") for path in folder.glob("*-cache")}


def test_incomplete_entries_are_removed_and_each_is_read_once(folder, reads):
    entry(folder, "whole")
    entry(folder, "cut", cut=1)
    (folder / "empty-cache").touch()
    (folder / "other-cache").write_bytes(b"not zlib's")
    os.utime(folder / "other-cache", (LONG_AGO, LONG_AGO))
    keep_compiled(str(folder))
    assert names(folder) == {"whole", "other"} and len(reads) == 4
    reads.clear()
    keep_compiled(str(folder))  # nothing is new
    assert reads == []
    new = entry(folder, "new", cut=10, used=(folder / "checked").stat().st_mtime + 1)
    keep_compiled(str(folder))  # after a run that compiled, and was killed
    assert reads == [new.name] and names(folder) == {"whole", "other"}


def test_the_least_recently_used_go_first(folder, monkeypatch, reads):
    monkeypatch.setattr(compilation_cache, "_MAX_BYTES", 3500)
    for i, name in enumerate("abcde"):
        entry(folder, name, used=LONG_AGO + i)
    used = (folder / "a-cache").stat()
    os.utime(folder / "a-cache", (LONG_AGO + 100, used.st_mtime))  # read, not written
    keep_compiled(str(folder))
    assert names(folder) == {"a", "d", "e"}
    keep_compiled(str(folder))
    assert names(folder) == {"a", "d", "e"}


def test_a_folder_that_is_not_there_or_cannot_be_written(folder, tmp_path, monkeypatch):
    keep_compiled(str(tmp_path / "later"))
    assert not (tmp_path / "later").exists()  # JAX makes it

    def fail(*_, **__):
        raise OSError(30, "Read-only file system")

    entry(folder, "cut", cut=1)
    for method in ("touch", "unlink"):
        monkeypatch.setattr(Path, method, fail)
    keep_compiled(str(folder))
    assert names(folder) == {"cut"}
