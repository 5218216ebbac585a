"""Progress on a terminal (a pseudo-terminal), without one, and after the terminal is closed."""

import logging
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_pipeline import progress
from data_pipeline.progress import BatchProgress, format_seconds

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.4, "59s"), (125, "2m 05s"), (3600 * 3 + 420, "3h 07m"), (99 * 3600, "4d 03h")],
)
def test_format_seconds(seconds, text):
    assert format_seconds(seconds) == text


def lines(monkeypatch, caplog, name, n_bytes):
    """Logged lines of four batches of 10 of 50 documents, 6 s each; 10 documents exist already."""
    times = iter(range(0, 100, 6))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))
    with caplog.at_level(logging.INFO), BatchProgress(name, "documents", 50, 4, done=10) as bar:
        for _ in range(4):
            bar.advance(10, n_bytes)
    return caplog.messages


def test_lines_are_logged_now_and_then_and_at_the_end(monkeypatch, caplog):
    assert lines(monkeypatch, caplog, "encoding", 3_000_000) == [
        "encoding: 30 of 50 documents, 0.5 MB/s, 12s left",
        "encoding: 50 of 50 documents, 0.5 MB/s, 0s left",
    ]


def test_without_bytes_the_rate_is_in_units(monkeypatch, caplog):
    assert lines(monkeypatch, caplog, "val", 0)[0] == "val: 30 of 50 documents, 2/s, 12s left"


def test_without_a_name_nothing_is_reported(monkeypatch, caplog):
    assert lines(monkeypatch, caplog, None, 1) == []


def test_without_a_last_line_only_what_is_long_is_logged(monkeypatch, caplog):
    times = iter(range(0, 100, 6))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))
    with (
        caplog.at_level(logging.INFO),
        BatchProgress("evaluation", "batches", 3, 3, last_line=False) as bar,
    ):
        for _ in range(3):
            bar.advance(1)
    assert caplog.messages == ["evaluation: 2 of 3 batches, 0/s, 6s left"]


def test_work_that_cannot_say_how_far_it_is_is_logged_now_and_then(monkeypatch, caplog):
    monkeypatch.setattr(progress, "WAITING_SECONDS", 0.01)
    with caplog.at_level(logging.INFO), progress.Waiting("compiling", before=125.0) as waiting:
        while len(caplog.messages) < 2:
            time.sleep(0.01)
    assert caplog.messages[0] == "compiling: 0s (2m 05s the last time)"
    assert 0.02 <= waiting.seconds < 60
    n = len(caplog.messages)
    time.sleep(0.05)
    assert len(caplog.messages) == n  # not after its end
    with caplog.at_level(logging.INFO), progress.Waiting("compiling", shown=False):
        time.sleep(0.05)
    assert len(caplog.messages) == n


PROGRAM = """
import logging, sys
from absl import app
from configs import cli
from data_pipeline import progress
progress._REFRESH_SECONDS = 0.0
log = logging.getLogger("data_pipeline.test")

def main():
    bar = progress.ProgressBar("training", 4, 1, keep=True)
    bar.update(2, "2/4 [steps]")
    log.info("a line above the bar")
    print("ready", flush=True)
    sys.stdin.readline()
    with progress.BatchProgress("evaluation", "batches", 5, 5, last_line=False) as inner:
        inner.advance(1)
    with progress.Waiting("compiling", before=2.0):
        import time
        time.sleep(1.2)
    bar.update(4, "4/4 [steps]")
    log.info("another line")
    bar.close()
    log.info("a line below")
    print("done", flush=True)

cli.run_argv(lambda _: main())
"""


def run_on_terminal(*options, closed):
    """What the program writes to its terminal, which may be `closed` in between, and its status."""
    ours, theirs = pty.openpty()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": theirs, "text": True}
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *options], cwd=ROOT, env=environment, **pipes
    )
    os.close(theirs)
    assert program.stdout.readline() == "ready\n"
    text = b""
    if closed:
        os.close(ours)
    output, _ = program.communicate("\n", timeout=60)
    while not closed:
        try:
            text += os.read(ours, 1 << 16)
        except OSError:  # the program has closed its side, and all is read
            os.close(ours)
            break
    return output, program.returncode, text.decode()


def test_log_lines_are_above_the_bar_on_a_terminal():
    output, status, text = run_on_terminal(closed=False)
    assert (output, status) == ("done\n", 0)
    before, _, after = text.partition("a line above the bar")
    assert "50%" in before and "2/4 [steps]" in before  # no markup
    assert "50%" in after and "100%" in after and "4/4 [steps]" in after
    line = next(line for line in text.split("\n") if "a line above the bar" in line)
    assert "%" not in line.rpartition("\x1b[2K")[2]  # the bar was erased first
    assert "\x1b[?25l" not in text  # the cursor stays visible
    assert text.rstrip().endswith("a line below")


def test_what_runs_meanwhile_is_a_line_below_the_bar():
    _, _, text = run_on_terminal(closed=False)
    evaluation = text.index("1 of 5 batches")
    compiling = text.index("1s (2s the last time)")
    assert text.index("2/4 [steps]") < evaluation < compiling < text.index("4/4 [steps]")
    last = text.rpartition("4/4 [steps]")[0].rpartition("\x1b[2K")[2]
    assert "evaluation" not in last and "compiling" not in last  # they are gone at their ends


def test_quiet_shows_neither_lines_nor_bars():
    assert run_on_terminal("--quiet", closed=False) == ("done\n", 0, "")


def test_a_closed_terminal_does_not_end_the_program():
    assert run_on_terminal(closed=True)[:2] == ("done\n", 0)
