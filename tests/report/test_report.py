"""The report's figures against closed forms, on hand-made runs; and the page in a real browser."""

import base64
import contextlib
import hashlib
import json
import math
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import Page

from configs import debug
from configs.errors import UserError
from data_pipeline.token_store import TOKENIZER
from gptjax.common.workdir import save_config
from gptjax.evaluate.published import PUBLISHED
from gptjax.metrics.writers import START
from gptjax.report import run_history
from gptjax.report.page import write_report

# A run of configs/debug.py's shape, logged every 10 steps: 512 tokens and 1/4 s a step, from step
# 50 on half as many tokens in twice the time. Evaluations lie off these lines.
STEPS = range(10, 101, 10)
VAL_STEPS = (25, 75, 104)
# 6 FLOPs a matmul parameter (2 layers x 12 D^2, head V D) and 12 L D T; D = T = 32, V = 512.
FLOPS_PER_TOKEN = 6 * (2 * 12 * 32**2 + 512 * 32) + 12 * 2 * 32 * 32


def tokens(step):
    return 512 * min(step, 50) + 256 * max(0, step - 50)


def seconds(step):
    return min(step, 50) / 4 + max(0, step - 50) / 2


def loss(step):
    return 8 * math.exp(-step / 40)


def train_line(step, **other):
    return {
        "step": step,
        "train/loss": loss(step),
        "train/bits_per_byte": loss(step) / 3,
        "optim/learning_rate": 1e-3 * step,
        "optim/grad_norm": 1 + step / 100,
        "perf/tokens_per_sec": 2048.0 if step <= 50 else 512.0,
        "perf/mfu": None,
        "perf/train_seconds": seconds(step),
        "data/tokens_seen": tokens(step),
        "data/epoch": step / 40,
    } | other


def val_line(step):
    return {
        "step": step,
        "val/loss": loss(step) + 1,
        "val/perplexity": math.exp(loss(step) + 1),
        "val/bits_per_byte": (loss(step) + 1) / 3,
    }


def run_lines():
    lines = [train_line(step) for step in STEPS] + [val_line(step) for step in VAL_STEPS]
    return sorted(lines, key=lambda line: line["step"])


def make_run(workdir, lines=None, *, config=None, text=None):
    """A workdir with these lines of metrics (or this text), and a config.json."""
    workdir.mkdir(parents=True)
    if text is None:
        lines = run_lines() if lines is None else lines
        text = "".join(json.dumps(line) + "\n" for line in lines)
    (workdir / "metrics.jsonl").write_text(text)
    config = config or debug.get_config()
    config.train.max_iters = 200
    save_config(config, workdir)
    return workdir


def report(*workdirs):
    first, *others = workdirs
    return Page(write_report(first, others))


def test_curves_are_the_lines_over_steps_tokens_time_and_flops(tmp_path):
    page = report(make_run(tmp_path / "run"))
    table, values = page.curve("train/loss")
    assert table["step"] == list(STEPS)
    assert table["tokens"] == [tokens(step) for step in STEPS]
    assert table["seconds"] == [seconds(step) for step in STEPS]
    assert values == pytest.approx([loss(step) for step in STEPS], rel=1e-6)
    assert page.data["runs"][0]["flops_per_token"] == FLOPS_PER_TOKEN == 270_336
    _, rates = page.curve("optim/learning_rate")
    assert rates == pytest.approx([1e-3 * step for step in STEPS], rel=1e-6)
    drawn = {name for chart in page.data["charts"] for name in chart["names"]}
    assert drawn >= {name for line in run_lines() for name in line} - {
        "step",
        "data/tokens_seen",
        "perf/train_seconds",
    }


def test_evaluations_are_placed_between_lines_and_past_the_last(tmp_path):
    page = report(make_run(tmp_path / "run"))
    table, values = page.curve("val/bits_per_byte")
    assert table["step"] == list(VAL_STEPS)
    assert table["tokens"] == [512 * 25, 512 * 50 + 256 * 25, 512 * 50 + 256 * 54]
    assert table["seconds"] == [6.25, 25.0, 39.5]
    assert values == pytest.approx([(loss(step) + 1) / 3 for step in VAL_STEPS], rel=1e-6)


def test_vocabulary_is_that_of_the_tokenizer_where_there_is_one(tmp_path, store):
    config = debug.get_config()
    config.tokenizer.vocab_size = 600  # a bound: the tokenizer may have found fewer pieces
    workdir = make_run(tmp_path / "run", config=config)
    more = 6 * (600 - 512) * 32
    assert run_history.read(workdir).flops_per_token == FLOPS_PER_TOKEN + more
    shutil.copy(store.path / TOKENIZER, workdir / TOKENIZER)
    assert run_history.read(workdir).flops_per_token == FLOPS_PER_TOKEN


def test_summary(tmp_path):
    page = report(make_run(tmp_path / "run"))
    assert page.row("steps") == ["104 of 200 (52%)"]
    assert page.row("training time") == ["38s"]  # 37.5, to even
    assert page.row("left, at the rate so far") == ["36s"]  # 37.5 s / 100 steps x 96
    assert page.row("tokens") == ["38,400"]
    assert page.row("passes over the data") == ["2.5"]
    assert page.row("model FLOPs") == [f"{38_400 * FLOPS_PER_TOKEN:.3e}"]
    assert page.row("tokens per second, median") == ["1,280"]  # five lines of each speed
    assert page.row("val bits per byte, last") == [f"{(8 * math.exp(-2.6) + 1) / 3:.4f}"]
    assert page.row("val bits per byte, best")[0].endswith(" at step 104")
    assert "MFU, median" not in {row[0] for row in page.rows}  # not known: not shown
    assert page.row("25") == ["12,800", "6s", "5.2821", "196.78", "1.7607"]  # the evaluations


def test_runs_side_by_side(tmp_path):
    config = debug.get_config()
    config.optim.learning_rate = 0.25
    config.data.source = "other.parquet"
    other = [train_line(step) for step in STEPS] + [
        {"step": step, "val/bits_per_byte": 3 - step / 100} for step in (20, 60)
    ]
    page = report(make_run(tmp_path / "a/run"), make_run(tmp_path / "b/run", other, config=config))
    assert [run["name"] for run in page.data["runs"]] == ["run (1)", "run (2)"]
    assert page.row("optim.learning_rate") == ["0.01", "0.25"]
    assert page.row("data.source")[1] == '"other.parquet"'
    differing = [
        row[0] for row in page.rows if len(row) == 3 and "." in row[0] and " " not in row[0]
    ]
    assert differing[:2] == ["data.source", "optim.learning_rate"]
    # Both were evaluated up to 60 steps' tokens, 512 x 50 + 256 x 10; the first run's value there
    # lies on the line from its evaluation at step 25 (12,800 tokens) to that at 75 (32,000).
    at = 28_160
    low, high = (loss(25) + 1) / 3, (loss(75) + 1) / 3
    first = low + (high - low) * (at - 12_800) / (32_000 - 12_800)
    assert page.row("val bits per byte at 28,160 tokens, which all reached") == [
        f"{first:.4f}",
        "2.4000",
    ]


def test_long_runs_are_thinned_by_exact_means(tmp_path):
    n = 5001
    lines = [
        train_line(
            10 * i, **{"train/loss": float(i), "optim/grad_norm": float(i) if i % 2 else None}
        )
        for i in range(1, n + 1)
    ]
    page = report(make_run(tmp_path / "run", lines))
    table, values = page.curve("train/loss")
    assert table["lines_per_point"] == 3 and len(values) == n // 3
    assert values == [3 * k + 2 for k in range(n // 3)]  # the mean of 3k+1, 3k+2, 3k+3
    assert table["step"] == [10 * (3 * k + 3) for k in range(n // 3)]
    _, rates = page.curve("optim/learning_rate")  # a value, not a mean: the last of the three
    assert rates == pytest.approx([1e-3 * step for step in table["step"]], rel=1e-6)
    _, norms = page.curve("optim/grad_norm")  # unknown ones do not count
    assert norms[:2] == [2.0, 5.0]


def test_restarts_and_skipped_steps(tmp_path):
    documents = [f"<urn:{i}>" for i in range(25)]
    lines = [
        {"step": 0, START: 0},
        *(train_line(step, **{"optim/skipped_steps": 0}) for step in (10, 20)),
        {"step": 20, START: 20},
        {"step": 20, START: 20},
        {
            "step": 23,
            "skipped/loss": None,
            "skipped/grad_norm": 7.5,
            "skipped/micro_steps": [1],
            "skipped/documents": documents,
        },
        train_line(30, **{"optim/skipped_steps": 1}),
    ]
    page = report(make_run(tmp_path / "run", lines))
    assert page.row("restarts (dotted lines)") == ["2"]
    assert page.data["runs"][0]["restarts"] == {
        "step": [20, 20],
        "tokens": [10_240, 10_240],
        "seconds": [5.0, 5.0],
    }
    assert page.row("skipped steps") == ["1"]
    assert page.curve("optim/skipped_steps")[1] == [0, 0, 1]
    figures = page.row("23")
    assert figures[:2] == ["–", "7.5"]
    assert figures[2] == ", ".join(documents[:20]) + ", ... 25 in all"


def test_samples_evaluations_and_configuration(tmp_path):
    workdir = make_run(tmp_path / "run")
    for folder in ("samples", "eval"):
        (workdir / folder).mkdir()
    for step in range(5, 151, 5):
        (workdir / f"samples/{step}.txt").write_text(f"The text at {step}\n")
    for step in (10, 20, 30, 40, 50, 1000):
        result = {"val": {"loss": step / 8, "loss_stderr": None}, "by": "us"}
        if step == 1000:
            result |= {"n_params": 1838, "other": {"loss": 0.625, "loss_stderr": 0.01129}}
            result["benchmarks"] = {"blimp/wh_island": {"acc": 0.5}}
            result["text"] = {"a/b.parquet": {"loss": 3}}
        (workdir / f"eval/{step}.json").write_text(json.dumps(result))
    (workdir / "eval/broken.json").write_text('{"piqa":')
    (workdir / "eval/list.json").write_text("[1]")
    page = report(workdir)
    steps = [int(text.split()[1]) for text in page.texts if re.fullmatch(r"step \d+", text)]
    assert len(steps) == 24 and steps == sorted(steps) and (steps[0], steps[-1]) == (5, 150)
    assert [text for text in page.texts if "text at" in text] == [f"The text at {s}" for s in steps]
    assert "6 more are in samples/." in page.texts
    head = next(row for row in page.rows if "step 1,000" in row)
    assert head[1:] == ["step 20", "step 30", "step 40", "step 50", "step 1,000"]
    assert page.row("val.loss") == ["2.5", "3.75", "5", "6.25", "125"]
    assert page.row("other.loss") == ["–"] * 4 + ["0.625 ± 0.011"]
    assert page.row("n_params")[-1] == "1,838"
    assert page.row("benchmarks.blimp/wh_island.acc")[-1] == "0.5"
    names = [row[0] for row in page.rows]  # parts come last, in a table of their own
    assert names.index("text.a/b.parquet.loss") < names.index("benchmarks.blimp/wh_island.acc")
    assert "1 earlier ones are in eval/." in page.texts
    assert "by" not in {row[0] for row in page.rows}
    assert sum("eval/" in text and "left out" in text for text in page.texts) == 1
    assert sum("eval/broken.json could not be read" in text for text in page.texts) == 1
    assert page.row("train.max_iters") == ["200", "250000"]  # set, and the default
    assert page.row("seed") == ["1337", ""]


def test_benchmarks_stand_beside_published_figures(tmp_path):
    """The last ones in training and those of gptjax.evaluate, and a curve for each metric."""
    lines = run_lines()
    for step, acc in ((50, 0.5), (100, 0.5625)):
        scores = {"n": 500, "chance": 0.5, "acc": acc, "acc_stderr": 0.0222, "acc_norm": None}
        scores |= {"acc_norm_stderr": None}
        lines.append({"step": step, **{f"benchmark/piqa/{k}": v for k, v in scores.items()}})
    lines.append({"step": 100, "benchmark/lambada/perplexity": 12345.0})
    lines.append({"step": 100, "benchmark/nobody/knows": 1.0, "benchmark/blimp/acc": [HOSTILE]})
    workdir = make_run(tmp_path / "run", lines)
    (workdir / "eval").mkdir()
    whole = {"n": 1838, "chance": 0.5, "acc": 0.625, "acc_stderr": 0.01129}
    odd = {"n": HOSTILE, "chance": [], "acc": 10**400}
    scores = {"piqa": whole, "blimp/u0": {"n": 3, "acc": 0.25}, "winogrande": odd, "blimp": 7}
    (workdir / "eval/1000.json").write_text(json.dumps({"benchmarks": scores}))
    (workdir / "eval/2000.json").write_text(json.dumps({"benchmarks": [HOSTILE]}))
    page = report(workdir)
    head = next(row for row in page.rows if "GPT-2 124M" in row)
    assert head[:5] == ["", "items", "chance", "step 1,000", "in training, step 100"]
    others = [other.figures.get("piqa/acc") for other in PUBLISHED]
    assert head[5:] == [other.model for other in PUBLISHED] and None not in others
    theirs = [f"{100 * figure:.1f}" for figure in others]
    ours = ["1,838 / 500", "50.0", "62.5 ± 1.1", "56.2 ± 2.2"]
    assert page.row("piqa acc") == [*ours, *theirs]
    assert page.row("piqa acc_norm")[2:4] == ["n/a", "n/a ± n/a"]
    assert page.row("lambada perplexity")[2:4] == ["n/a", "1.23e+04 ± n/a"]
    assert page.row("winogrande acc")[:4] == ["", "n/a", "n/a ± n/a", "n/a"]
    assert all(any(other.source in text for text in page.texts) for other in PUBLISHED)
    assert page.curve("benchmark/piqa/acc")[1] == [0.5, 0.5625]
    drawn = {name for chart in page.data["charts"] for name in chart["names"]}
    assert {name for name in drawn if name.startswith("benchmark/")} == {
        "benchmark/piqa/acc",
        "benchmark/lambada/perplexity",
    }
    assert page.row("benchmarks.blimp/u0.acc") == ["0.25", "–"]  # with the other figures
    assert "benchmarks.piqa.acc" not in {row[0] for row in page.rows}


HOSTILE = "</script></pre><script>alert(1)</script><img src=x onerror=alert(2)>\u2028'\"&amp;"


def make_hostile_run(parent):
    """A run whose every text tries to break out of the page."""
    config = debug.get_config()
    config.data.source = HOSTILE
    config.sample.prompts = (HOSTILE,)
    skipped = {"step": 100, "skipped/loss": 9.0, "skipped/documents": [HOSTILE, "\ud800"]}
    lines = [*run_lines(), {"step": 100, HOSTILE: 1.0}, skipped]
    workdir = make_run(parent / "<img src=x onerror=alert(3)>", lines, config=config)
    for folder in ("samples", "eval"):
        (workdir / folder).mkdir()
    (workdir / "samples/100.txt").write_text(HOSTILE)
    (workdir / "samples/\udcff.txt").write_text("a name that is no UTF-8")
    (workdir / "samples/<b>.txt").write_bytes(b"\xff\x00<b>")
    (workdir / "eval/x.json").write_text(json.dumps({HOSTILE: 1}))
    return workdir


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


# ---- in a browser


@contextlib.contextmanager
def opened(browser, path, width, **options):
    """The page in a window of this width; console messages, errors and requests fail the test."""
    context = browser.new_context(viewport={"width": width, "height": 850}, **options)
    page = context.new_page()
    messages = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("dialog", lambda dialog: (messages.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: messages.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_selector(".card .uplot canvas", state="attached")
    yield page
    context.close()
    assert messages == [path.as_uri()]


def card_of(page, title):
    return page.locator(".card").filter(has=page.locator(f"strong:text-is('{title}')"))


def curves(page, title):
    """The extent in pixels of each visible curve of a chart."""
    return page.evaluate(
        """(title) => {
            const { plot } = cards.find((card) => card.title === title);
            return plot.series.flatMap(({ show }, i) => {
                const known = plot.data[0].filter((_, j) => typeof plot.data[i][j] === "number");
                const values = plot.data[i].filter((value) => typeof value === "number");
                const span = (scale, values) => {
                    const at = values.map((value) => plot.valToPos(value, scale));
                    return Math.max(...at) - Math.min(...at);
                };
                return i && show ? [{ width: span("x", known), height: span("y", values) }] : [];
            });
        }""",
        title,
    )


def ticks(page, title, axis):
    """The labels of the ticks of x (axis 0) or y (1) of a chart."""
    return page.evaluate(
        """([title, axis]) => cards.find((card) => card.title === title).plot.axes[axis]._values""",
        [title, axis],
    )


def slide(page, name, value):
    page.evaluate(
        """([name, value]) => {
            const slider = document.querySelector(`input[name=${name}]`);
            slider.value = value;
            slider.dispatchEvent(new Event("input", { bubbles: true }));
        }""",
        [name, value],
    )


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_page_fits_the_window_and_draws(browser, tmp_path, width):
    path = write_report(make_hostile_run(tmp_path), [make_run(tmp_path / ("long-name" * 12))])
    with opened(browser, path, width) as page:
        page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
        page.wait_for_timeout(200)
        for x in ("tokens", "seconds", "flops", "step"):
            page.check(f"input[value={x}]", force=True)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            for title in ("Loss", "Bits per byte", "Learning rate", "Gradient norm", "Throughput"):
                card = card_of(page, title)
                n = 4 if title in ("Loss", "Bits per byte") else 2
                assert card.locator(".u-series button").count() == n
                for drawn in curves(page, title):
                    assert drawn["width"] > 100 and drawn["height"] > 10
                assert len(curves(page, title)) == n
                assert len(ticks(page, title, 0)) >= 2 and len(ticks(page, title, 1)) >= 2
        assert card_of(page, "MFU").locator("canvas").count() == 0


@pytest.mark.slow
def test_cursor_axes_and_smoothing_show_exact_values(browser, tmp_path):
    path = write_report(make_run(tmp_path / "run"))
    with opened(browser, path, 1000) as page:
        card = card_of(page, "Loss")
        outputs = card.locator(".u-series:not(:first-child):not(.faint) .u-value")
        x_label, x_value = (
            card.locator(f".u-series:first-child .u-{x}") for x in ("label", "value")
        )

        def read():
            return [float(text) for text in outputs.all_text_contents()]

        def hover(share):  # of the x axis
            plot = card.locator(".u-over").bounding_box()
            page.mouse.move(plot["x"] + share * plot["width"], plot["y"] + 50)

        last = [loss(100), loss(104) + 1]
        assert read() == pytest.approx(last, rel=1e-3)
        assert (x_label.text_content(), x_value.text_content()) == ("tokens", "last")
        hover(tokens(40) / tokens(104))
        assert read() == pytest.approx([loss(40), loss(25) + 1], rel=1e-3)
        assert x_value.text_content() == "20.48K"
        # The other charts show the same place.
        norm = card_of(page, "Gradient norm").locator(".u-series:last-child .u-value")
        assert norm.text_content() == "1.4"
        page.check("input[value=flops]", force=True)
        hover(tokens(30) / tokens(104))
        assert read() == pytest.approx([loss(30), loss(25) + 1], rel=1e-3)
        assert x_value.text_content() == "4.152B"  # 30 x 512 x 270,336
        page.check("input[value=seconds]", force=True)
        hover(seconds(70) / 39.5)
        assert read() == pytest.approx([loss(70), loss(75) + 1], rel=1e-3)
        assert x_label.text_content() == "seconds of training"
        labels = ticks(page, "Loss", 0)
        assert labels[:2] == ["0", "10"]

        page.mouse.move(0, 0)
        slide(page, "from", 0.5)  # of 39.5 seconds
        labels = ticks(page, "Loss", 0)
        assert labels[0] == "25"  # the first line from there on is that of step 70
        slide(page, "from", 0)
        slide(page, "smoothing", 0.9)
        weights = [0.9 ** (len(STEPS) - 1 - i) for i in range(len(STEPS))]
        smoothed = sum(w * loss(s) for w, s in zip(weights, STEPS, strict=True)) / sum(weights)
        assert read() == pytest.approx([smoothed, last[1]], rel=1e-3)  # val loss is not smoothed
        assert len(curves(page, "Loss")) == 3  # the raw training loss stays, faintly

        card.locator("button:visible").first.click()  # hides the training loss
        page.mouse.move(0, 0)
        assert outputs.all_text_contents()[0] == "–"
        assert len(curves(page, "Loss")) == 1

        page.check("input[name=logX]")  # no value at x = 0, and ticks of a logarithmic axis
        assert page.evaluate("cards[0].plot.scales.x.min") > 0


@pytest.mark.slow
def test_colours_follow_the_system(browser, tmp_path):
    path = write_report(make_run(tmp_path / "run"))
    light = []
    for scheme in ("light", "dark"):
        with opened(browser, path, 800, color_scheme=scheme) as page:
            colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
            light.append(sum(map(int, re.findall(r"\d+", colour))) / 3)
    assert light[0] > 200 and light[1] < 60
