"""Sweeps: declared, validated, run, killed, resumed, and summarised."""

import copy
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from configs import base, cli, debug
from configs.errors import UserError
from gptjax.report import sweep_results
from gptjax.report.page import write_report
from gptjax.sweep import code_version, sweep, trials
from gptjax.train import trainer

ROOT = Path(__file__).parents[2]
RNG = np.random.default_rng(0)

# ---- declarations


def declare(settings, *, seeds=(1, 2), **others):
    return sweep(base=debug.get_config(), settings=settings, seeds=seeds, **others)


def test_trials_are_the_product_with_changes_in_order(tmp_path):
    def deeper(config):
        config.model.n_layer = 3
        config.optim.beta2 = 0.5

    declared = declare(
        {"a": {}, "b": (deeper, {"optim.beta2": 0.75})},
        common={"model.n_layer": 1, "train.max_epochs": 3.0, "optim.eps": 1e-3},
        per_seed={2: {"optim.eps": 1e-4, "model.n_layer": 2}},
    )
    runs = trials.declared_trials(declared, tmp_path)
    assert [trial.name for trial in runs] == ["a-s1", "b-s1", "a-s2", "b-s2"]
    for trial in runs:
        config, is_b = trial.config, trial.setting == "b"
        assert config.workdir == str(tmp_path / trial.name) and config.seed == trial.seed
        assert config.model.n_layer == (3 if is_b else trial.seed)
        assert config.optim.eps == (1e-4 if trial.seed == 2 else 1e-3)
        assert config.optim.beta2 == (0.75 if is_b else 0.99)
        assert config.train.max_epochs == 3.0 and len(config.sample.prompts) == 0
    assert trials.changes(runs[1].config).items() >= {"model.n_layer": 3, "seed": 1}.items()
    assert not any(key.startswith(("log", "workdir")) for key in trials.changes(runs[1].config))


def test_all_problems_are_listed_at_once(tmp_path):
    declared = declare(
        {
            "a": {"optim.learnin_rate": 1.0},
            "b": {"model.n_head": 5},
            "c": {"model.n_layer": "two"},
            "d/e": {},
            "f": {"train.log_interval": 21, "train.max_iters": 20, "optim.lr_decay_iters": 20},
        },
        seeds=(1, 1),
        common={"optim.nothing_like_it_at_all": 1},
    )
    with pytest.raises(UserError) as error:
        trials.declared_trials(declared, tmp_path)
    problems = str(error.value).splitlines()[1:]
    for words in (
        "a: optim.learnin_rate is not a key of configs/base.py (did you mean optim.learning_rate?)",
        "b: model.n_embd = 32 must be a multiple of model.n_head = 5",
        "c: model.n_layer = 'two'",
        "'d/e' cannot be the name of a folder",
        "a seed is listed twice",
        "f: train.log_interval = 21 exceeds train.max_iters = 20",
        "b: optim.nothing_like_it_at_all is not a key",
    ):
        assert len([p for p in problems if words in p]) == 1, words
    assert len(problems) == 11  # the last one for each of the five settings
    assert not list(tmp_path.iterdir())


def test_a_run_of_that_name_with_different_values_is_refused(tmp_path):
    before, now = (
        trials.declared_trials(declare({"a": {"optim.beta2": beta2}}), tmp_path)
        for beta2 in (0.9, 0.95)
    )
    row = {"overrides": json.loads(json.dumps(trials.changes(before[0].config)))}
    trials.refuse_changed(before, {("a", 1): row})
    row["overrides"]["eval.benchmarks"] = []  # a default, which an older version wrote
    trials.refuse_changed(before, {("a", 1): row})
    with pytest.raises(UserError, match=r"a-s1 was run with optim.beta2 = 0.9 \(now 0.95\)"):
        trials.refuse_changed(now, {("a", 1): row})
    now[1].workdir.mkdir()  # started, without a row yet
    (now[1].workdir / "config.json").write_text(before[1].config.to_json())
    trials.refuse_changed(before, {})
    with pytest.raises(UserError, match=r"a-s2 was run with optim.beta2 = 0.9"):
        trials.refuse_changed(now, {})


# ---- the table and its summary


def row(setting, seed, bits, *, tokens=1000, seconds=10.0, **other):
    steps = range(1, len(bits) + 1)
    n = len(bits)
    curve = [[s, tokens * s // n, seconds * s / n, b] for s, b in zip(steps, bits, strict=True)]
    return {
        **{"sweep": "s", "setting": setting, "seed": seed, "status": "done", "n_params": 10},
        **{"tokens": tokens, "seconds": seconds, "flops": 1e9, "passes": 0.5},
        **{"bits_per_byte": bits[-1], "curve": curve, "code": "c"},
        **other,
    }


def test_summary_is_that_of_numpy():
    a, b = RNG.normal(2, 0.1, (2, 5, 4))
    a, b = (np.sort(x, axis=1)[:, ::-1] for x in (a, b - 0.05))
    rows = [row("a", s, a[s].tolist()) for s in range(5)]
    rows += [row("b", s, b[s].tolist(), tokens=500, seconds=20.0) for s in (4, 2, 0)]
    failed = {"sweep": "s", "setting": "b", "seed": 9, "status": "failed", "reason": "ouch"}
    rows.append({**failed, "code": "d"})
    text = summary(rows, ["a", "b"], "a")
    assert "2 versions of the code" in text
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines()]
    first, second = (c for c in cells if c and c[0] in ("a", "b") and len(c) == 9)
    assert first[1:4] == ["5", f"{a[:, -1].mean():.4f} ± {a[:, -1].std(ddof=1):.4f}", ""]
    both = [0, 2, 4]
    difference = b[both, -1] - a[both, -1]
    error = difference.std(ddof=1) / math.sqrt(3)
    assert second[1] == "3 (+ 1 failed)" and "b, seed 9, failed: ouch" in text
    assert second[3] == f"{difference.mean():+.4f} ± {error:.4f}"
    assert second[5:8] == ["500", "0.50", "20.0"]
    xs = np.linspace(125, 500, 400_001)
    ratios = []
    for s in both:  # each with the reference's run of that seed
        reached = xs[np.interp(xs, [125, 250, 375, 500], b[s]) <= a[s, -1]]
        ratios.append(reached[0] / 1000)
    within = f"{max(100 * 125 / (1000 * ratio) for ratio in ratios):.0f} %"
    error = np.std(ratios, ddof=1) / math.sqrt(3)
    third, fourth = (c for c in cells if c and c[0] in ("a", "b") and len(c) == 7)
    assert third[1:] == ["5 of 5", "1,000", "1.000 ± 0.0000", "10.0", "1.000 ± 0.0000", "25 %"]
    assert fourth[1] == "3 of 3" and fourth[6] == within
    assert float(fourth[2]) == round(1000 * np.mean(ratios))
    for cell, scale in ((fourth[3], 1), (fourth[5], 1000 / 500 * 20 / 10)):
        printed = [float(x) for x in cell.split(" ± ")]
        assert printed == pytest.approx([scale * np.mean(ratios), scale * error], abs=6e-4)


def summary(rows, settings, reference):
    return sweep_results.markdown(*sweep_results.summary(rows, settings, reference))


def test_unreached_losses_and_single_runs_have_no_figure():
    rows = [row("a", 1, [3.0, 2.0]), row("b", 2, [3.0, 2.5])]
    text = summary(rows, [], "a")
    assert "| a | 1 | 2.0000 |  |" in text and "| b | 1 | 2.5000 | – |" in text
    assert "| b | 0 of 0 | – | – | – | – | – |" in text
    assert "| b | 1 | 2.5000 |  |" in summary(rows, [], "b")
    rows += [row("b", 1, [3.0, 1.5]), row("a", 2, [3.0, 2.4])]  # with seed 2, b is too late
    assert "| b | 1 of 2 | – | – | – | – | – |" in summary(rows, [], "a")
    with pytest.raises(UserError, match="the settings are a, b"):
        summary(rows, [], "c")


def test_a_finished_run_without_results_has_a_reason(finished, tmp_path):
    """Only a run before its last step is left without a row, to be resumed."""
    folder, _, _ = finished
    workdir = tmp_path / "good-s1"
    shutil.copytree(folder / "good-s1", workdir)
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    assert sweep_results.measured(workdir)["tokens"] == 20 * 8 * 32

    def measured(*kept):
        (workdir / "metrics.jsonl").write_text("".join(line + "\n" for line in kept))
        return sweep_results.measured(workdir)

    last = json.loads(lines[-1])
    assert last["step"] == 20 and "val/loss" in last
    assert measured(*(line for line in lines if '"step": 20' not in line)) is None
    last["val/bits_per_byte"] = math.nan
    assert "20, is not finite" in measured(*lines[:-1], json.dumps(last))
    assert "no line of training" in measured(*(x for x in lines if "data/tokens_seen" not in x))


def test_changes_are_those_from_the_defaults():
    assert trials.changes(base.get_config()) == {}
    config = base.get_config()
    config.eval.benchmarks = ("a.jsonl",)
    assert trials.changes(config) == {"eval.benchmarks": ["a.jsonl"]}


def test_a_truncated_row_does_not_damage_others(tmp_path):
    path = tmp_path / "results.jsonl"
    sweep_results.append(path, row("a", 1, [3.0, 2.0]))
    with path.open("a") as f:
        f.write('{"sweep": "s", "setting": "b"')
    sweep_results.append(path, row("a", 2, [3.0, 2.0]))
    sweep_results.append(path, row("a", 1, [3.0, 1.5]))
    rows = sweep_results.read(path, "s")
    assert rows.keys() == {("a", 1), ("a", 2)}
    assert rows["a", 1]["bits_per_byte"] == 1.5  # the latest
    assert sweep_results.read(path, "another") == sweep_results.read(tmp_path / "none", "s") == {}


# ---- the version of the code


def test_code_version(tmp_path, monkeypatch):
    if (ROOT / ".git").exists():
        git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
        head = subprocess.run(git, capture_output=True, text=True)
        if head.returncode == 0:
            assert code_version.commit() == head.stdout.strip()
    assert code_version.ROOT == ROOT
    assert code_version.commit(tmp_path) is None
    inside = ROOT / "gptjax"  # as if installed in a folder of another project's checkout
    assert code_version.commit(inside) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert code_version.commit() is None
    (tmp_path / "gptjax").mkdir()
    digests = set()
    for text in ("a", "b", "a"):
        (tmp_path / "gptjax/x.py").write_text(text)
        digests.add(code_version.code_digest(tmp_path))
    assert len(digests) == 2 and code_version.code_digest() not in digests


# ---- runs


FILE = """
from configs import debug
from gptjax.sweep import sweep


def get_config():
    return sweep(
        base=debug.get_config(),
        common={
            "data.source": %r,
            "data.cache_dir": %r,
            "train.log_interval": 10,
            "optim.beta2": 0.95,
        },
        settings={
            "good": {},
            "bad": {"optim.learning_rate": 1e30, "train.max_consecutive_skips": 3},
        },
        seeds=(1, 2),
    )
"""


@pytest.fixture(scope="module")
def finished(debug_config, tmp_path_factory):
    """A sweep, killed when it had a row, stopped, and resumed; (folder, rows, outputs)."""
    home = tmp_path_factory.mktemp("sweep")
    (home / "tiny.py").write_text(
        FILE % (str(ROOT / debug_config.data.source), debug_config.data.cache_dir)
    )
    jobs = min(2, len(os.sched_getaffinity(0)))
    command = [sys.executable, "-m", "gptjax.sweep", "--sweep=tiny.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    folder = home / "runs/sweeps/tiny"
    table = folder / "results.jsonl"
    arguments = {"cwd": home, "env": environment, "text": True}
    killed = subprocess.Popen(command, start_new_session=True, **arguments)
    give_up = time.monotonic() + 200
    while killed.poll() is None and time.monotonic() < give_up:
        if table.exists() and table.read_text():  # it is there before its first row
            break
        time.sleep(0.01)
    assert killed.poll() is None, "it ended before it could be killed"
    os.killpg(killed.pid, signal.SIGKILL)  # and its current run
    killed.wait()
    first = table.read_text()
    before = time.time()
    stopped = subprocess.Popen(command, **arguments)
    while stopped.poll() is None and time.monotonic() < give_up:
        if any(log.stat().st_mtime > before for log in folder.glob("*/log.txt")):
            stopped.terminate()  # a run has started
            break
        time.sleep(0.01)
    assert stopped.wait(timeout=200) == 0
    assert table.read_text().startswith(first) and table.read_text().count("\n") < 4
    command.append(f"--jobs={jobs}")
    outputs = [
        subprocess.run([*command, *more], capture_output=True, timeout=300, **arguments)
        for more in ([], ["--summary", "--reference=bad"], ["--retry"])
    ]
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    assert table.read_text().startswith(first) and 1 <= first.count("\n") < 4
    return folder, rows, outputs


def test_each_run_has_a_row_despite_kills(finished):
    folder, rows, outputs = finished
    assert [output.returncode for output in outputs] == [0, 0, 0], outputs[0].stderr
    assert sorted((r["setting"], r["seed"]) for r in rows[:4]) == [
        ("bad", 1),
        ("bad", 2),
        ("good", 1),
        ("good", 2),
    ]
    retried = sorted((r["setting"], r["seed"]) for r in rows[4:])
    assert retried == [("bad", 1), ("bad", 2)]
    for r in rows:
        assert r["sweep"] == "tiny" and r["overrides"]["optim.beta2"] == 0.95
        assert r["status"] == ("done" if r["setting"] == "good" else "failed")
        if r["setting"] == "bad":
            assert "skipped" in r["reason"] and "Traceback" not in r["reason"]
        else:
            assert r["tokens"] == 20 * 8 * 32 and r["flops"] == r["tokens"] * 270_336
            assert [point[0] for point in r["curve"]] == [10, 20]
            assert not (folder / f"good-s{r['seed']}/checkpoints").exists()
    for output in outputs:
        assert "| good | 2 |" in output.stdout and "2 failed" in output.stdout
    assert "difference to bad" in outputs[1].stdout


def test_a_row_has_the_results_of_the_same_run_alone(finished, debug_config, tmp_path):
    _, rows, _ = finished
    config = copy.deepcopy(debug_config)
    config.workdir = str(tmp_path / "alone")
    config.optim.beta2, config.seed = 0.95, 2
    trainer.train_and_evaluate(config)
    lines = [json.loads(s) for s in (tmp_path / "alone/metrics.jsonl").read_text().splitlines()]
    row = next(r for r in rows if (r["setting"], r["seed"]) == ("good", 2))
    assert row["bits_per_byte"] == pytest.approx(lines[-1]["val/bits_per_byte"], rel=1e-5)
    assert row["val_loss"] == pytest.approx(lines[-1]["val/loss"], rel=1e-5)
    assert row["passes"] == pytest.approx(lines[-2]["data/epoch"])


def test_report_draws_a_sweep(finished):
    folder, _, _ = finished
    page = write_report(folder).read_text()
    assert "difference to good" in page and "bad, seed 2, failed: " in page
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    groups = {run["name"]: run["group"] for run in data["runs"]}
    assert groups["good-s1"] == groups["good-s2"] != groups["bad-s1"] == groups["bad-s2"]


def test_a_missing_sweep_file(capsys):
    with pytest.raises(SystemExit):
        cli._parse_config(["sweep", "--sweep=none.py"], "sweep")
    assert "--sweep=none.py is no file (available: " in capsys.readouterr().err
