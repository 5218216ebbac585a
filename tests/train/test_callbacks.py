"""Callbacks between steps: when they run, that they change nothing, and their failures."""

import copy
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
from helpers import Page, bits

from configs.errors import UserError
from gptjax.evaluate import benchmarks
from gptjax.inference import sampler, scoring
from gptjax.inference.kv_cache import split_layers
from gptjax.inference.load import load_run
from gptjax.train import callbacks, trainer
from gptjax.train.callbacks import PeriodicCallback

ROOT = Path(__file__).parents[2]
N = 6  # steps of a run


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Two benchmarks of a few items."""
    folder = tmp_path_factory.mktemp("sets")
    words = "the of and to in that".split()
    choices = [{"goal": w, "sol1": "a " * i, "sol2": "b", "label": 0} for i, w in enumerate(words)]
    texts = [{"text": f"It is {a} {b}"} for a in words for b in words]
    for name, records in (("piqa", choices[1:]), ("lambada", texts)):
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(lines)
    return folder


@pytest.fixture
def off(debug_config, tmp_path, steps, monkeypatch):
    """A short run without callbacks, whose steps are compiled already."""
    monkeypatch.setattr(trainer, "StepFunctions", lambda *_: steps)
    config = copy.deepcopy(debug_config)
    config.workdir = str(tmp_path / "off")
    config.train.max_iters = N
    config.train.log_interval = 1
    config.eval.eval_interval = 3
    config.sample.prompts = ()
    return config


@pytest.fixture
def on(off, tmp_path, sets):
    """The same run with every callback."""
    config = copy.deepcopy(off)
    config.workdir = str(tmp_path / "on")
    config.sample.prompts = ("The ", "A longer prompt, ")
    config.sample.interval = 2
    config.eval.benchmarks = (str(sets),)
    config.eval.benchmark_interval = 3
    config.eval.benchmark_limit = 5
    config.report.interval = 2
    return config


def lines_of(config, name):
    lines = (Path(config.workdir) / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if name in line]


def samples_of(config):
    return {p.name: p.read_text() for p in (Path(config.workdir) / "samples").iterdir()}


# --- when ---


@pytest.mark.parametrize(
    ("interval", "expected"), [(0, [N]), (1, [1, 2, 3, 4, 5, 6]), (4, [4, 6]), (9, [6])]
)
def test_a_callback_is_due_at_its_interval_and_at_the_end(interval, expected):
    callback = PeriodicCallback(interval, lambda step, params: None)
    assert [s for s in range(1, N + 1) if callback.due(s, at_end=s == N)] == expected


def test_disabled_callbacks_are_not_imported(off):
    """Importing the modules takes as long as some runs."""
    code = """
import sys
from configs import base
from gptjax.train import callbacks, trainer
config = base.get_config()
config.sample.prompts = ()
assert callbacks.problems(config) == callbacks.measurements(config, None, None, None) == []
assert callbacks.reports(config) == []
names = "gptjax.evaluate gptjax.report gptjax.serve jinja2 tensorboardX wandb"
print([name for name in names.split() if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_a_run_without_callbacks_only_evaluates(off, monkeypatch):
    runs = []
    monkeypatch.setattr(trainer.Trainer, "loop", lambda run: runs.append(run))
    trainer.train_and_evaluate(off)
    (callback,) = runs[0].callbacks
    assert (callback.interval, callback.run) == (3, runs[0]._evaluate_and_save)


# --- what they write ---


def test_callbacks_write_and_do_not_change_the_run(off, on, store, caplog):
    for program in (sampler._prefill, sampler._begin, sampler._decode, scoring.token_scores):
        program.clear_cache()  # another test may have compiled them for the same shapes
    caplog.set_level("INFO", "gptjax")
    without = trainer.train_and_evaluate(off)
    with jax.log_compiles():
        state = trainer.train_and_evaluate(on)
    assert bits(state) == bits(without)
    workdir = Path(on.workdir)
    assert not (Path(off.workdir) / "samples").exists()

    assert samples_of(on).keys() == {"2.txt", "4.txt", "6.txt"}
    first, second = samples_of(on)["6.txt"].split("\n\n---\n\n")
    assert first.startswith("The ") and second.startswith("A longer prompt, ")

    name = "benchmark/piqa/acc"
    assert [line["step"] for line in lines_of(on, name)] == [3, 6]
    last = lines_of(on, name)[-1]
    run = load_run(workdir)
    assert run.step in (3, 6)
    suite = benchmarks.Suite(run.tokenizer, benchmarks.find_files([Path(on.eval.benchmarks[0])]), 5)
    scores = suite.run(scoring.Scorer(run.model_config, state.params), progress=False)
    for task, values in scores.items():
        assert values["n"] == 5
        for key, value in values.items():
            assert last[f"benchmark/{task}/{key}"] == value

    page = Page(workdir / "report.html")
    assert samples_of(on)["6.txt"].strip() in page.texts
    assert "in training, step 6" in next(row for row in page.rows if "GPT-2 124M" in row)
    assert page.row("piqa acc")[:2] == ["5", "50.0"]
    assert page.curve(name)[1] == [line[name] for line in lines_of(on, name)]

    # The first time compiles: a program for each padded length that occurs (the two prompts are of
    # different ones), one for the first token and one for the rest. The second compiles nothing.
    compiled = [
        (i, match[1])
        for i, record in enumerate(caplog.records)
        if (match := re.match(r"Compiling jit\((\w+)\)", record.getMessage()))
    ]
    names = [name for _, name in compiled]
    assert names.count("_prefill") == 2
    assert names.count("_begin") == names.count("_decode") == 1
    assert 1 <= names.count("token_scores") <= 5
    reported = [i for i, r in enumerate(caplog.records) if r.getMessage().startswith("Step 3: ")]
    assert len(reported) == 1
    later = {name for i, name in compiled if i > reported[0]}
    assert not later & {"_prefill", "_begin", "_decode", "token_scores", split_layers.__name__}


def test_a_finished_run_samples_again_and_nothing_else(on):
    on.train.max_iters = 2
    trainer.train_and_evaluate(on)
    before = (Path(on.workdir) / "metrics.jsonl").read_bytes()
    sampled = samples_of(on)
    (Path(on.workdir) / "samples/2.txt").unlink()
    trainer.train_and_evaluate(on)
    assert samples_of(on) == sampled
    assert (Path(on.workdir) / "metrics.jsonl").read_bytes() == before


def test_a_resumed_run_calls_back_like_an_unbroken_one(on, tmp_path):
    unbroken = copy.deepcopy(on)
    unbroken.workdir = str(tmp_path / "unbroken")
    expected = bits(trainer.train_and_evaluate(unbroken))
    on.train.max_iters = 4
    trainer.train_and_evaluate(on)
    on.train.max_iters = N
    assert bits(trainer.train_and_evaluate(on)) == expected
    name = "benchmark/lambada/perplexity"
    values = {line["step"]: line[name] for line in lines_of(on, name)}
    assert [line["step"] for line in lines_of(on, name)] == [3, 4, 6]  # 4 was an end, too
    assert {step: values[step] for step in (3, 6)} == {
        line["step"]: line[name] for line in lines_of(unbroken, name)
    }
    assert samples_of(on) == samples_of(unbroken)


def test_a_run_killed_between_a_callback_and_the_checkpoint_repeats_it(on, monkeypatch):
    save = trainer.Trainer._evaluate_and_save

    def cut_short(run, step, params):
        if step == N:
            raise KeyboardInterrupt
        save(run, step, params)

    monkeypatch.setattr(trainer.Trainer, "_evaluate_and_save", cut_short)
    with pytest.raises(KeyboardInterrupt):
        trainer.train_and_evaluate(on)
    assert [line["step"] for line in lines_of(on, "benchmark/piqa/acc")] == [3, 6]
    monkeypatch.setattr(trainer.Trainer, "_evaluate_and_save", save)
    trainer.train_and_evaluate(on)
    assert [line["step"] for line in lines_of(on, "benchmark/piqa/acc")] == [3, 6]


# --- failures ---


def test_a_callback_that_fails_does_not_end_the_run(off, on, monkeypatch, caplog):
    def broken(*_):
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    expected = bits(trainer.train_and_evaluate(off))
    monkeypatch.setattr(scoring.Scorer, "score", broken)
    workdir = Path(on.workdir)
    (workdir / "report.html").mkdir(parents=True)
    (workdir / "samples").write_text("no folder")
    assert bits(trainer.train_and_evaluate(on)) == expected
    messages = [record.getMessage() for record in caplog.records]
    failures = [text for text in messages if text.endswith("Training continues.")]
    assert [text.split(" failed")[0] for text in failures] == [
        "Step 2: sampling",
        "Step 2: the report",
        "Step 3: benchmarks",
        "Step 4: sampling",
        "Step 4: the report",
        "Step 6: sampling",
        "Step 6: benchmarks",
        "Step 6: the report",
    ]
    assert "RESOURCE_EXHAUSTED" in caplog.text
    assert [line["step"] for line in lines_of(on, "val/loss")] == [3, 6]


def test_all_problems_are_listed_before_any_work(on, tmp_path):
    damaged = tmp_path / "hellaswag.jsonl"
    damaged.write_text('{"ctx": \n')
    on.eval.benchmarks = (str(tmp_path / "none"), str(damaged))
    on.train.batch_size = 0
    on.sample.interval = -1
    on.data.source = str(tmp_path / "no source, which would be reported next")
    with pytest.raises(UserError) as error:
        trainer.train_and_evaluate(on)
    message = str(error.value)
    assert message.startswith("the configuration has 4 problems:")
    for words in (
        "train.batch_size = 0 must be positive",
        "sample.interval = -1 must not be negative",
        f"eval.benchmarks: there is no file or folder {tmp_path / 'none'}",
        f"eval.benchmarks: {damaged}, line 1: not an item of hellaswag",
    ):
        assert words in message
    assert not Path(on.workdir).exists()


# --- time ---


def test_the_training_clock_is_paused(on, monkeypatch):
    def slow(*_, **__):
        time.sleep(0.5)
        return iter([])

    monkeypatch.setattr(callbacks, "continue_texts", slow)
    on.eval.benchmarks = ()
    on.report.interval = 0
    on.sample.interval = 1
    trainer.train_and_evaluate(on)
    slept = 0.5 * N
    assert lines_of(on, "perf/train_seconds")[-1]["perf/train_seconds"] < slept / 2


# --- a mesh ---


@pytest.mark.slow
def test_sharded_parameters_are_measured_whole(on, tmp_path):
    """Two devices hold half of each matrix: the same samples and scores as of one device."""
    on.train.max_iters = 1
    config = copy.deepcopy(on)
    config.workdir = str(tmp_path / "split")
    config.mesh.fsdp = 2
    code = f"""
import os
os.environ["JAX_PLATFORMS"] = "cpu"
import jax
jax.config.update("jax_num_cpu_devices", 2)
import json
from ml_collections import ConfigDict
from configs import base
from gptjax.train import trainer
config = base.get_config()
config.update(ConfigDict(json.loads({json.dumps(json.dumps(config.to_dict()))})))
state = trainer.train_and_evaluate(config)
assert not state.params["wte"].is_fully_replicated
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    trainer.train_and_evaluate(on)
    assert samples_of(config) == samples_of(on)
    ours, theirs = (lines_of(c, "benchmark/piqa/n")[0] for c in (on, config))
    for name in ours.keys() - {"time"}:
        assert ours[name] == (None if theirs[name] is None else pytest.approx(theirs[name], 1e-4))
