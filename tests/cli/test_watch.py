"""`gptjax watch`: what it shows of a run at each moment of its life, and when it ends."""

import itertools
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from configs import quickstart
from configs.errors import UserError
from data_pipeline.lock import FileLock, is_held
from gptjax.cli import machine, watch
from gptjax.cli.curve import draw
from gptjax.cli.follow import Follower

ROOT = Path(__file__).parents[2]


def line(step, seconds, **values):
    names = {name.replace("__", "/"): value for name, value in values.items()}
    return json.dumps({"step": step, "time": seconds, **names}) + "\n"


@pytest.fixture
def workdir(tmp_path):
    config = quickstart.get_config()
    config.train.max_iters = 100
    (tmp_path / "config.json").write_text(config.to_json())
    return tmp_path


def append(workdir, *lines):
    with (workdir / "metrics.jsonl").open("a") as f:
        f.write("".join(lines))


def shown(run, cards=()):
    run.update()
    return "\n".join(watch.lines(run, 40, list(cards)))


def test_a_run_from_before_its_first_line_to_its_end(tmp_path, workdir):
    run = Follower(workdir)
    assert shown(run) == f"{workdir}: step 0/100 (0%), not begun"
    lock = FileLock(workdir / "lock")
    assert "starting (preparing, compiling)" in shown(run)
    append(workdir, line(0, 1e3, run__start_step=0), line(10, 1010.0, train__loss=5.0)[:20])
    assert "step 0/100 (0%), running" in shown(run)  # of the half line, nothing
    append(workdir, line(10, 1010.0, train__loss=5.0)[20:])
    assert "step 10/100 (10%), running\ntrain loss 5.0000" in shown(run)
    assert run.seconds_left is None  # of one line
    append(workdir, line(20, 1030.0, train__loss=4.0, perf__mfu=None, perf__tokens_per_sec=2e3))
    append(workdir, line(20, 1031.0, val__loss=4.5, val__bits_per_byte=1.5))
    append(workdir, "{damaged\n", "[]\n", '{"step": "x"}\n')
    text = shown(run, [machine.Card("a", "550", "12282", "700", "98", "8.9")])
    assert "train loss 4.0000 | val loss 4.5000 | 1.5000 bits/byte | best val loss 4.5000" in text
    assert "2,000 tokens/s | 2m 40s left" in text  # 80 steps of 2 s
    assert "card 0: 700 of 12282 MiB, busy 98 %" in text
    assert "train loss, step 10 to 20" in text and "no new line for" in text
    lock.release()
    assert "step 20/100 (20%), stopped" in shown(run)
    append(workdir, line(100, 1e4, train__loss=1.0))
    assert "finished" in shown(run) and "left" not in shown(run)


def test_a_resumed_run_has_written_its_file_again(workdir):
    run = Follower(workdir)
    append(workdir, *(line(step, step, train__loss=step) for step in (1, 2, 3)))
    run.update()
    (workdir / "new").write_text(line(1, 1, train__loss=1) + line(1, 50, run__start_step=1))
    (workdir / "new").replace(workdir / "metrics.jsonl")
    run.update()
    assert run.curves["train/loss"] == [(1, 1)] and run.step == 1
    append(workdir, line(2, 60, train__loss=7), line(3, 70, train__loss=8))
    run.update()
    assert run.curves["train/loss"] == [(1, 1), (2, 7), (3, 8)]
    assert run.seconds_left == 970  # at 10 s a step: the pause is not counted


def test_the_newest_sample_cannot_move_the_cursor(workdir):
    (workdir / "samples").mkdir()
    (workdir / "samples" / "9.txt").write_text("old")
    (workdir / "samples" / "10.txt").write_text("\x1b[2Jnew " + "x" * 1000)
    append(workdir, line(10, 1, train__loss=1))
    text = shown(Follower(workdir))
    assert "sample of step 10:\n\\x1b[2Jnew xxx" in text and text.endswith("x...")
    assert len(text) < 2000 and "\x1b" not in text


def test_a_lock_is_held_by_a_living_process_or_by_one_elsewhere(tmp_path):
    path = tmp_path / "lock"
    assert not is_held(path)
    with FileLock(path):
        assert is_held(path)
    assert not is_held(path)
    child = subprocess.Popen(["true"])
    child.wait()
    record = {"pid": child.pid, "host": socket.gethostname(), "since": "now"}
    path.write_text(json.dumps(record))
    assert not is_held(path)  # killed
    path.write_text(json.dumps(record | {"host": "elsewhere"}))
    assert is_held(path)


# --- the curve ---


def dots(lines):
    """Returns the set of (x, y) of all dots, from the top left, and the width of the labels."""
    margin = min(line.index(min(re.findall("[\u2800-\u28ff]", line))) for line in lines)
    bits = {0: (0, 0), 1: (0, 1), 2: (0, 2), 3: (1, 0), 4: (1, 1), 5: (1, 2), 6: (0, 3), 7: (1, 3)}
    found = set()
    for row, text in enumerate(lines):
        cells = [ord(c) - 0x2800 for c in text if "\u2800" <= c <= "\u28ff"]
        for column, bit in itertools.product(range(len(cells)), range(8)):
            if cells[column] >> bit & 1:
                x, y = bits[bit]
                found.add((2 * column + x, 4 * row + y))
    return found, margin


def test_a_falling_line_is_drawn_from_corner_to_corner():
    drawn = draw([(step, 10.0 - step) for step in range(11)], width=17, height=5)
    found, _ = dots(drawn)
    assert drawn[0].startswith("10.000 ") and drawn[-1].startswith(" 0.000 ")
    assert {len(line) for line in drawn} == {17}
    assert (0, 0) in found and (19, 19) in found  # 20 x 20 dots
    assert {x for x, _ in found} == set(range(20))
    assert all(abs(x - y) <= 2 for x, y in found)


@pytest.mark.parametrize("step", [1, 40])
def test_a_step_is_joined_by_a_vertical_line(step):
    points = [(i * step, 1.0 if i < 5 else 0.0) for i in range(10)]
    found, _ = dots(draw(points, width=26, height=3))
    assert {y for _, y in found} == set(range(12))


def test_curves_of_few_or_equal_points():
    for points in ([], [(5, 1.0)], [(5, 1.0), (9, float("nan"))]):
        assert draw(points, 20, 4) == []
    found, _ = dots(draw([(5, 1.0), (9, 1.0)], 20, 4))
    assert {y for _, y in found} == {8}
    columns = {x for x, _ in dots(draw([(0, 1.0), (10**6, 2.0)], 20, 4))[0]}
    assert columns == set(range(28))  # (20 - len("2.000 ")) x 2
    spread, _ = dots(draw([(i, i % 2) for i in range(10_000)], 20, 4))
    assert len(spread) < 100  # means of many points


# --- the program ---

PROGRAM = "import sys; sys.argv[0] = 'gptjax'; from gptjax.cli.__main__ import main; main()"


def start(*arguments, **options):
    command = [sys.executable, "-c", PROGRAM, "watch", *arguments]
    return subprocess.Popen(command, cwd=ROOT, text=True, **options)


def test_once_prints_text_without_jax(workdir, monkeypatch, capsys):
    append(workdir, line(100, 1e3, train__loss=2.0))
    out = subprocess.check_output(
        [sys.executable, "-X", "importtime", "-c", PROGRAM, "watch", workdir, "--once"],
        *(),
        cwd=ROOT,
        text=True,
        stderr=(workdir / "imports").open("w"),
    )
    assert out.startswith(f"{workdir}: step 100/100 (100%), finished\n") and "\x1b" not in out
    assert not re.search(r"\| jax$", (workdir / "imports").read_text(), re.MULTILINE)


def test_once_refuses_a_folder_without_a_run(workdir, monkeypatch):
    monkeypatch.setattr(watch.flags, "FLAGS", type("F", (), {"workdir": str(workdir)})())
    watch.flags.FLAGS.once, watch.flags.FLAGS.seconds = True, 1.0
    with pytest.raises(UserError, match="no run has begun there"):
        watch._main([])


def test_on_a_terminal_it_waits_for_the_run_and_ends_with_it(workdir):
    ours, theirs = os.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "60", "LINES": "30"}
    watching = start(str(workdir), "--seconds=0.1", stdout=theirs, env=environment)
    os.close(theirs)
    seen = b""

    def wait_for(text):
        nonlocal seen
        while text not in seen:
            seen += os.read(ours, 1 << 16)

    wait_for(b"not begun")
    with FileLock(workdir / "lock"):
        append(workdir, line(1, time.time(), train__loss=5.0))
        wait_for(b"running")
        assert watching.poll() is None
    wait_for(b"stopped")
    assert watching.wait(timeout=30) == 0
    os.close(ours)
