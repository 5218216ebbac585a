"""Hostile texts, damaged metrics and errors: the page stays whole and escaped."""

import base64
import hashlib
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import Page
from report_runs import HOSTILE, STEPS, make_hostile_run, make_run, report, run_lines, train_line

from configs.errors import UserError
from gptjax.report import run_history
from gptjax.report.page import write_report


def test_hostile_text_stays_text(tmp_path):
    page = report(make_hostile_run(tmp_path))
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 2 and "img" not in tags and "b" not in tags
    assert HOSTILE in page.texts
    assert page.texts[0] == "<img src=x onerror=alert(3)>"
    assert page.row("data.source")[0] == json.dumps(HOSTILE, ensure_ascii=False)
    assert f"{HOSTILE}, ?" in page.row("100")
    assert page.row(HOSTILE) == ["1"]
    assert page.curve(HOSTILE)[1] == [1.0]


def test_vendored_library_is_the_published_one(tmp_path):
    folder = Path(run_history.__file__).parent / "static/vendor/uplot"
    listed = re.findall(r"([0-9a-f]{64})  (\S+)", (folder / "README.md").read_text())
    assert {name for _, name in listed} == {"uPlot.iife.min.js", "uPlot.min.css"}
    for digest, name in listed:
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    source = report(make_run(tmp_path / "run")).source
    for name in ("uPlot.iife.min.js", "uPlot.min.css", "LICENSE"):
        assert (folder / name).read_text() in source
    assert len(source) < 120_000  # of which uPlot is 53,000


def test_page_requests_nothing_and_runs_nothing_else(tmp_path):
    page = report(make_run(tmp_path / "run"))
    policy = next(a["content"] for tag, a in page.tags if "http-equiv" in a)
    assert policy.startswith("default-src 'none';")
    for tag in ("style", "script"):
        content = re.search(f"<{tag}>(.*?)</{tag}>", page.source, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}';" in policy
    for _, attributes in page.tags:
        assert not attributes.keys() & {"src", "href", "style", "srcset", "action"}
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|import\(", page.source)


WHOLE = "".join(json.dumps(line) + "\n" for line in run_lines())


@pytest.mark.parametrize(
    ("text", "points", "damaged"),
    [
        (WHOLE, 10, 0),
        (WHOLE + '{"step": 110, "train/lo', 10, 1),
        (WHOLE.replace("\n", "\n\ufffd\x00\n", 1), 10, 1),
        (WHOLE + '[]\n"step"\n{"loss": 1}\n{"step": "7"}\n{"step": -1}\n{"step": 1e3}\n', 10, 6),
        (WHOLE + "[" * 100_000 + "\n", 10, 1),
        (json.dumps(train_line(10)) + "\n", 1, 0),
        ("", 0, 0),
        ('{"step": 0, "run/start_step": 0}\n', 0, 0),
    ],
)
def test_unfinished_and_damaged_runs(tmp_path, text, points, damaged):
    page = report(make_run(tmp_path / "run", text=text))
    if points:
        assert len(page.curve("train/loss")[1]) == points
    else:
        assert page.data["runs"][0]["tables"] == []
    notes = [note for note in page.texts if "could not be read" in note]
    assert [note.split()[1] for note in notes] == [str(damaged)] * bool(damaged)
    assert ("None yet." in page.texts) == ("val/loss" not in text)


def test_places_beyond_every_number_are_not_known(tmp_path):
    text = (
        '{"step": 1, "time": 1e300, "data/tokens_seen": -1e308, "a": 1}\n'
        '{"step": 2, "time": -1e300, "data/tokens_seen": 1e308, "a": 2}\n'
        '{"step": 90, "time": 1e300, "val/bits_per_byte": 3}\n'
    )
    page = report(make_run(tmp_path / "run", text=text))
    assert page.curve("a")[0]["tokens"][1] is None
    assert page.curve("val/bits_per_byte")[0]["tokens"] == [None]
    assert page.row("last line written") == ["4147-08-20 07:32 UTC"]


def test_files_beyond_all_limits_are_refused_or_left_out(tmp_path, monkeypatch):
    workdir = make_run(tmp_path / "run")
    for folder in ("samples", "eval"):
        (workdir / folder).mkdir()
        os.mkfifo(workdir / folder / "1.json")  # reading it would wait
        os.mkfifo(workdir / folder / "1.txt")
    (workdir / "samples" / "2.txt").write_text("the second")
    page = report(workdir)
    assert "the second" in page.texts
    for name in ("samples/1.txt", "eval/1.json"):
        assert any(f"{name} is left out: " in text for text in page.texts)
    with monkeypatch.context() as patch:
        patch.setattr("gptjax.common.workdir.MAX_LINES", 3)
        with pytest.raises(UserError, match="over 3 lines: raise train.log_interval"):
            report(workdir)
    os.truncate(workdir / "metrics.jsonl", 1 << 40)
    with pytest.raises(UserError, match="metrics.jsonl has 1,099,511,627,776 bytes"):
        report(workdir)


def test_a_time_beyond_every_clock_is_not_known(tmp_path):
    lines = [train_line(10, **{"perf/train_seconds": 1e308}), train_line(20)]
    lines[1]["perf/train_seconds"] = 1e308
    page = report(make_run(tmp_path / "run", lines))
    assert page.row("steps") == ["20 of 200 (10%)"]


def test_no_damage_to_the_metrics_stops_the_report(tmp_path):
    """Bytes changed, removed and repeated, and values of any size and kind."""
    rng = random.Random(0)
    workdir = make_run(tmp_path / "run")
    values = ["1e308", "-1e308", "1e400", "NaN", "null", "true", '"x"', "[]", "{}", "9" * 400, "0"]
    for _ in range(80):
        text = WHOLE
        for _ in range(rng.randrange(1, 6)):
            at = rng.randrange(len(text))
            if rng.random() < 0.5:
                text = text[:at] + re.sub(
                    r": [-.e\d]+", ": " + rng.choice(values), text[at:], count=1
                )
            else:
                text = text[:at] + rng.choice(["", text[at] * 3, "\0", '"']) + text[at + 1 :]
        (workdir / "metrics.jsonl").write_text(text)
        report(workdir)


def test_values_that_are_not_finite_break_a_curve(tmp_path):
    text = '{"step": 1, "a": NaN}\n{"step": 2, "a": 1e999}\n{"step": 3, "a": 1%s}\n' % ("0" * 400)
    page = report(make_run(tmp_path / "run", text=text + '{"step": 4, "a": 0.1}\n'))
    assert page.curve("a")[1] == [None, None, None, 0.1]
    assert page.curve("a")[0]["tokens"] is None


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '{"model": {"n_layers": 2}}', '{"seed": []}', None]
)
def test_runs_of_no_or_another_configuration(tmp_path, damage):
    workdir = make_run(tmp_path / "run")
    (workdir / "config.json").unlink()
    if damage is not None:
        (workdir / "config.json").write_text(damage)
    page = report(workdir)
    assert page.data["runs"][0]["flops_per_token"] is None
    assert page.row("steps") == ["104"]
    assert any("FLOPs are not known" in note for note in page.texts)
    assert len(page.curve("train/loss")[1]) == len(STEPS)


def test_errors_leave_the_last_page(tmp_path):
    run = make_run(tmp_path / "run")
    page = write_report(run)
    before = page.read_bytes()
    with pytest.raises(UserError, match=r"nowhere has no metrics\.jsonl"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"nowhere has no metrics\.jsonl"):
        write_report(run, [tmp_path / "nowhere"])
    with pytest.raises(UserError, match="cannot be written: No such file or directory"):
        write_report(run, out=tmp_path / "no/folder.html")
    with pytest.raises(UserError, match="cannot be written: Is a directory"):
        write_report(run, out=tmp_path)
    assert page.read_bytes() == before
    assert sorted(path.name for path in run.iterdir()) == [
        "config.json",
        "metrics.jsonl",
        "report.html",
    ]


def test_command_line(tmp_path):
    names = ["a", "b", "c"]
    a, b, c = (make_run(tmp_path / name) for name in names)
    out = tmp_path / "page.html"
    command = [sys.executable, "-m", "gptjax.report", "--workdir", a, "--compare", b, c]
    root = Path(__file__).parents[2]
    done = subprocess.run([*command, "--out", out], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{out} (")
    assert [run["name"] for run in Page(out).data["runs"]] == names
