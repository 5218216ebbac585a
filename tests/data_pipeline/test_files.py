"""A file is the old one or the new one, never a part of it."""

import os
import subprocess
import sys

import pytest

from data_pipeline import files
from data_pipeline.files import write_atomically


def test_write_atomically_leaves_the_old_file_or_the_new_one(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_temporary_files_of_dead_processes_are_removed_and_of_live_ones_not(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = (f".file.{dead.pid}.tmp", f".file.{os.getppid()}.tmp", f".file2.{dead.pid}.tmp")
    for name in names:
        (tmp_path / name).write_bytes(b"half")
    write_atomically(tmp_path / "file", b"whole")
    assert {p.name for p in tmp_path.iterdir()} == {"file", *names[1:]}
