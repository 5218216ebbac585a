"""Two runs in one workdir: the second is refused, and a dead process holds nothing."""

import errno
import fcntl
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from configs.errors import UserError
from data_pipeline.lock import FileLock
from gptjax.common.workdir import WorkdirLock

ROOT = Path(__file__).parents[2]

HOLD = """
import sys, pathlib
from gptjax.common.workdir import WorkdirLock
lock = WorkdirLock(pathlib.Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the workdir's lock until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_the_second_is_refused_and_the_holder_named(holder, tmp_path):
    before = (tmp_path / "run" / "lock").read_bytes()
    with pytest.raises(UserError) as error:
        WorkdirLock(tmp_path / "run")
    message = str(error.value)
    assert f"process {holder.pid} on {socket.gethostname()}, since 20" in message
    assert re.search(r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d\)", message)
    assert str(tmp_path / "run") in message and "--config.workdir" in message
    assert (tmp_path / "run" / "lock").read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_of_a_dead_process_is_taken_over(holder, tmp_path, caplog, number):
    holder.send_signal(number)
    holder.wait()
    lock = WorkdirLock(tmp_path / "run")
    assert f"process {holder.pid} on" in caplog.text and "taking over" in caplog.text
    assert json.loads((tmp_path / "run" / "lock").read_text())["pid"] == os.getpid()
    lock.release()


def test_it_excludes_within_a_process_and_release_frees_it(tmp_path, caplog):
    lock = WorkdirLock(tmp_path)
    with pytest.raises(UserError, match=f"process {os.getpid()} on"):
        WorkdirLock(tmp_path)
    lock.release()
    lock.release()
    again = WorkdirLock(tmp_path)
    assert caplog.text == ""  # nobody died
    again.release()


@pytest.mark.parametrize("text", ["", "no JSON", "[]", '{"pid": 1}', "\x00\xff"])
def test_any_content_of_the_file_is_accepted(tmp_path, text):
    (tmp_path / "lock").write_text(text)
    WorkdirLock(tmp_path).release()


def test_a_removed_workdir_is_locked_again(tmp_path, caplog):
    lock = WorkdirLock(tmp_path / "run")
    lock.ensure()
    assert caplog.text == ""
    shutil.rmtree(tmp_path / "run")
    lock.ensure()
    assert "was removed while it was locked" in caplog.text
    with pytest.raises(UserError, match="in use by another run"):
        WorkdirLock(tmp_path / "run")
    lock.release()


def test_a_run_that_has_taken_a_removed_workdir_keeps_it(tmp_path):
    first = WorkdirLock(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    second = WorkdirLock(tmp_path / "run")
    with pytest.raises(UserError, match="in use by another run"):
        first.ensure()
    second.ensure()
    first.release()
    second.release()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_refused(tmp_path, monkeypatch, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(UserError, match=rf"lock cannot be locked \({os.strerror(number)}\).*local"):
        WorkdirLock(tmp_path)


def test_waiting_for_the_holder(holder, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    threading.Timer(0.5, holder.kill).start()
    with FileLock(tmp_path / "run" / "lock", wait=True):
        assert f"Waiting for process {holder.pid} on" in caplog.text
        assert "taking over" in caplog.text
        with pytest.raises(UserError, match="in use by another run"):
            WorkdirLock(tmp_path / "run")
    WorkdirLock(tmp_path / "run").release()


def test_training_refuses_a_workdir_in_use(holder, debug_config, tmp_path):
    """The program prints a paragraph and leaves the files of the other run alone."""
    result = subprocess.run(
        [
            *(sys.executable, "-m", "gptjax.main", "--config=configs/debug.py"),
            f"--config.workdir={tmp_path / 'run'}",
            f"--config.data.cache_dir={debug_config.data.cache_dir}",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 1
    assert f"process {holder.pid} on" in result.stderr and "Traceback" not in result.stderr
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["lock"]


def test_a_file_system_without_locks_is_named_while_waiting_too(tmp_path, monkeypatch):
    """Where the first try finds it locked, the second one waits; NFS can lose its lock service."""
    with FileLock(tmp_path / "lock"):
        real = fcntl.flock

        def flock(fd, how):
            if how & fcntl.LOCK_NB:
                return real(fd, how)
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", flock)
        with pytest.raises(UserError, match="cannot be locked .No locks available.*local disk"):
            FileLock(tmp_path / "lock", wait=True)
