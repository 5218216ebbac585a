"""The cache of compiled programs: incomplete entries go, the others are read by JAX alone."""

import os
from pathlib import Path

import jax
import pyarrow as pa
import pytest
from jax._src import compilation_cache as jaxs

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


class Zstd:
    """`compression.zstd` of Python 3.14, by pyarrow."""

    @staticmethod
    def compress(data):
        return pa.compress(data, codec="zstd", asbytes=True)

    @staticmethod
    def decompress(data):
        if not data:
            raise OSError("no frame")
        return pa.CompressedInputStream(pa.BufferReader(data), "zstd").read()


@pytest.fixture(params=[None, Zstd], ids=["zlib", "zstd"])
def compression(request, monkeypatch):
    monkeypatch.setattr(jaxs, "zstd", request.param)


def checked(folder):
    (file,) = folder.glob("checked-*")
    return file


def entry(folder, name, *, size=1000, used=LONG_AGO, cut=0):
    data = jaxs.compress_executable(os.urandom(size))
    path = folder / f"{name}-cache"
    path.write_bytes(data[: len(data) - cut])
    os.utime(path, (used, used))
    return path


def names(folder):
    return {path.name.removesuffix("-cache") for path in folder.glob("*-cache")}


def test_incomplete_entries_are_removed_and_each_is_read_once(folder, reads, compression):
    entry(folder, "whole")
    entry(folder, "cut", cut=1)
    entry(folder, "half", cut=500)
    (folder / "empty-cache").touch()
    keep_compiled(str(folder))
    assert names(folder) == {"whole"} and len(reads) == 4
    reads.clear()
    keep_compiled(str(folder))  # nothing is new
    assert reads == []
    new = entry(folder, "new", cut=10, used=checked(folder).stat().st_mtime + 1)
    keep_compiled(str(folder))  # after a run that compiled, and was killed
    assert reads == [new.name] and names(folder) == {"whole"}


def test_another_python_drops_what_it_cannot_read(folder, monkeypatch):
    """JAX looks for the entries of Python 3.13 and 3.14 by the same name."""
    entry(folder, "zlib")
    keep_compiled(str(folder))
    monkeypatch.setattr(jaxs, "zstd", Zstd)
    monkeypatch.setattr(compilation_cache.sys, "version_info", (3, 14, 0))
    entry(folder, "zstd")
    keep_compiled(str(folder))
    assert names(folder) == {"zstd"}


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
