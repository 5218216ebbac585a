"""Two runs, one workdir: the second is refused and told by whom; the dead hold nothing."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from configs.errors import UserError
from gptjax.common.lock import WorkdirLock

ROOT = Path(__file__).parents[2]

HOLD = """
import sys, pathlib
from gptjax.common.lock import WorkdirLock
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


def test_the_second_is_refused_and_told_who_holds_it(holder, tmp_path):
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


def test_within_a_process_too_and_release_frees_it(tmp_path, caplog):
    lock = WorkdirLock(tmp_path)
    with pytest.raises(UserError, match=f"process {os.getpid()} on"):
        WorkdirLock(tmp_path)
    lock.release()
    lock.release()
    again = WorkdirLock(tmp_path)
    assert caplog.text == ""  # nobody died
    again.release()


@pytest.mark.parametrize("text", ["", "no JSON", "[]", '{"pid": 1}', "\x00\xff"])
def test_whatever_the_file_holds_it_is_taken(tmp_path, text):
    (tmp_path / "lock").write_text(text)
    WorkdirLock(tmp_path).release()


def test_a_removed_workdir_is_locked_again(tmp_path, caplog):
    lock = WorkdirLock(tmp_path / "run")
    lock.ensure()
    assert caplog.text == ""
    shutil.rmtree(tmp_path / "run")
    lock.ensure()
    assert "was removed during the run" in caplog.text
    with pytest.raises(UserError, match="in use by another run"):
        WorkdirLock(tmp_path / "run")
    lock.release()


def test_whoever_took_a_removed_workdir_meanwhile_keeps_it(tmp_path):
    first = WorkdirLock(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    second = WorkdirLock(tmp_path / "run")
    with pytest.raises(UserError, match="in use by another run"):
        first.ensure()
    second.ensure()
    first.release()
    second.release()


def test_training_refuses_a_workdir_in_use(holder, debug_config, tmp_path):
    """The program says it in a paragraph, and leaves the other's files alone."""
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
