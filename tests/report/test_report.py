"""The report's figures against closed forms, on hand-made runs."""

import json
import math
import re
import shutil

import pytest
from report_runs import (
    FLOPS_PER_TOKEN,
    HOSTILE,
    STEPS,
    VAL_STEPS,
    loss,
    make_run,
    report,
    run_lines,
    seconds,
    tokens,
    train_line,
)

from configs import debug
from data_pipeline.token_store import TOKENIZER
from gptjax.common.workdir import START
from gptjax.evaluate.published import FIGURES, SOURCES
from gptjax.optim.schedules import schedules
from gptjax.report import run_history


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


def test_every_rate_of_a_run_is_in_one_chart(tmp_path):
    optim = debug.get_config().optim
    optim.optimizer, optim.head_learning_rate = "muon", 0.1
    keys = [key for key in schedules(optim, 100) if key.endswith("learning_rate")]
    assert len(keys) == 3
    rates = {f"optim/{key}": 1.0 + i for i, key in enumerate(keys)}
    page = report(make_run(tmp_path / "run", [train_line(step, **rates) for step in STEPS]))
    (chart,) = (chart for chart in page.data["charts"] if "optim/learning_rate" in chart["names"])
    assert chart["title"] == "Learning rate" and set(chart["names"]) == rates.keys()
    for name, rate in rates.items():
        assert page.curve(name)[1] == [rate] * len(STEPS)


def test_evaluations_are_placed_between_lines_and_past_the_last(tmp_path):
    page = report(make_run(tmp_path / "run"))
    table, values = page.curve("val/bits_per_byte")
    assert table["step"] == list(VAL_STEPS)
    assert table["tokens"] == [512 * 25, 512 * 50 + 256 * 25, 512 * 50 + 256 * 54]
    assert table["seconds"] == [6.25, 25.0, 39.5]
    assert values == pytest.approx([(loss(step) + 1) / 3 for step in VAL_STEPS], rel=1e-6)


def test_vocabulary_is_that_of_the_tokenizer_where_there_is_one(tmp_path, store):
    config = debug.get_config()
    config.tokenizer.vocab_size = 600  # a bound: the tokenizer may have learned fewer pieces
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


def test_seeds_of_a_setting_have_a_mean_and_its_standard_error(tmp_path):
    folders = []
    for seed, offset in ((1, 0.0), (2, 0.3), (3, 0.9)):
        lines = [
            train_line(
                step, **{"train/loss": step + offset, "perf/mfu": offset or (step - 20) or None}
            )
            for step in list(STEPS)[: 10 - seed]  # the last ones are still running
        ]
        folders.append(make_run(tmp_path / f"best-s{seed}", lines))
    page = report(*folders, make_run(tmp_path / "other-s1"))
    (mean,) = page.data["seeds"]
    assert mean["name"] == "best, mean of 3" and mean["group"] == page.data["runs"][0]["group"]
    (table,) = mean["tables"]
    steps = list(STEPS)[:7]
    assert table["step"] == steps
    assert table["tokens"] == [tokens(step) for step in steps]
    assert table["seconds"] == [seconds(step) for step in steps]
    assert table["values"]["train/loss"] == pytest.approx([step + 0.4 for step in steps])
    # Deviations -0.4, -0.1 and 0.5: their squares sum to 0.42; 0.42 / 2 / 3 is the error's square.
    assert table["errors"]["train/loss"] == pytest.approx([0.07**0.5] * 7, rel=5e-3)
    assert table["errors"]["optim/learning_rate"] == [0] * 7
    assert table["values"]["perf/mfu"][1] is None  # at step 20 not known for one of them
    assert None not in table["values"]["perf/mfu"][2:]
    assert report(folders[0]).data["seeds"] == []


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
    for name in ("broken", "list"):
        assert sum(f"eval/{name}.json is left out: " in text for text in page.texts) == 1
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
    others = FIGURES["piqa/acc"]
    assert head[5:] == list(SOURCES) and None not in others
    theirs = [f"{100 * figure:.1f}" for figure in others]
    ours = ["1,838 / 500", "50.0", "62.5 ± 1.1", "56.2 ± 2.2"]
    assert page.row("piqa acc") == [*ours, *theirs]
    assert page.row("piqa acc_norm")[2:4] == ["n/a", "n/a ± n/a"]
    assert page.row("lambada perplexity")[2:4] == ["n/a", "1.23e+04 ± n/a"]
    assert page.row("winogrande acc")[:4] == ["", "n/a", "n/a ± n/a", "n/a"]
    assert all(any(source in text for text in page.texts) for source in SOURCES.values())
    assert page.curve("benchmark/piqa/acc")[1] == [0.5, 0.5625]
    drawn = {name for chart in page.data["charts"] for name in chart["names"]}
    assert {name for name in drawn if name.startswith("benchmark/")} == {
        "benchmark/piqa/acc",
        "benchmark/lambada/perplexity",
    }
    assert page.row("benchmarks.blimp/u0.acc") == ["0.25", "–"]  # with the other figures
    assert "benchmarks.piqa.acc" not in {row[0] for row in page.rows}
