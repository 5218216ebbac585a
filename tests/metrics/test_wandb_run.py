"""W&B, from a module that records its calls: a run for each workdir, and none is fine, too."""

import copy
import json
import struct
import sys
import time
import types

import pytest

from configs.errors import UserError
from gptjax.metrics import wandb_run
from gptjax.metrics.writers import MetricsWriter
from gptjax.train import trainer


class FakeRun:
    def __init__(self, error=None, **arguments):
        self.arguments, self.error = arguments, error
        self.lines, self.finished = [], False

    def log(self, values, step):
        if self.error and step == 2:
            raise self.error
        self.lines.append((step, values))

    def finish(self):
        self.finished = True


class FakeWandb(types.ModuleType):
    """The functions that are called, with a valid login at first."""

    def __init__(self):
        super().__init__("wandb")
        self.mode, self.logged_in, self.runs, self.asked = "online", True, [], 0
        self.errors = {}  # by function

    def setup(self):
        return types.SimpleNamespace(settings=types.SimpleNamespace(mode=self.mode))

    def login(self, prompt):
        assert prompt is False  # nobody may be there to answer
        self.asked += 1
        if "login" in self.errors:
            raise self.errors["login"]
        return self.logged_in

    def init(self, **arguments):
        if "init" in self.errors:
            raise self.errors["init"]
        self.runs.append(FakeRun(self.errors.get("log"), **arguments))
        return self.runs[-1]


@pytest.fixture
def wandb(monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


@pytest.fixture
def config(debug_config):
    config = copy.deepcopy(debug_config)
    config.log.wandb, config.log.wandb_project = True, "project"
    return config


def write(config, workdir, start=0):
    writer = MetricsWriter(workdir, config, start)
    for step in range(start + 1, start + 4):
        writer.write(step, {"train/loss": step / 4, "perf/mfu": None, "skipped/documents": ["a:1"]})
    writer.close()
    return [
        json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()
    ]


def test_a_run_keeps_its_id_and_shares_it_with_none(config, wandb, tmp_path):
    first, second = tmp_path / "a/run", tmp_path / "b/run"
    write(config, first)
    write(config, first, start=2)
    write(config, second)
    one, resumed, other = (run.arguments for run in wandb.runs)
    assert one["id"] == resumed["id"] != other["id"] and len(one["id"]) == 16
    assert one["name"] == other["name"] == "run" and one["project"] == "project"
    assert one["resume"] == "allow" and one["dir"] == str(first)
    assert one["config"] == config.to_dict()
    assert wandb.runs[0].lines == [(step, {"train/loss": step / 4}) for step in (1, 2, 3)]
    assert [run.finished for run in wandb.runs] == [True] * 3


def test_without_a_login_the_run_is_warned_about_and_continues(config, wandb, tmp_path, caplog):
    wandb.logged_in = False
    assert wandb_run.problems(config.log) == []
    assert "you are not logged in" in caplog.text and "wandb login" in caplog.text
    assert write(config, tmp_path) == [1, 2, 3]
    assert caplog.text.count("NOT sent to Weights & Biases") == wandb.asked == 1 and not wandb.runs


def test_offline_needs_no_login(config, wandb, tmp_path, caplog):
    wandb.logged_in, wandb.mode = False, "offline"
    assert wandb_run.problems(config.log) == []
    write(config, tmp_path)
    assert len(wandb.runs) == 1 and not caplog.text


@pytest.mark.parametrize("function", ["login", "init", "log"])
def test_what_wandb_raises_does_not_end_the_run(config, wandb, tmp_path, caplog, function):
    wandb.errors[function] = RuntimeError("no network")
    assert wandb_run.problems(config.log) == []
    assert write(config, tmp_path) == [1, 2, 3]
    assert "no network" in caplog.text and wandb.asked == 1
    assert [run.lines for run in wandb.runs] == (
        [[(1, {"train/loss": 0.25})]] if function == "log" else []
    )


def test_the_question_comes_before_the_preparation(config, wandb, tmp_path, caplog, monkeypatch):
    class Prepared(Exception):
        pass

    def open_store(*_):
        assert "you are not logged in" in caplog.text
        raise Prepared

    monkeypatch.setattr(trainer, "open_store", open_store)
    wandb.logged_in = False
    with pytest.raises(Prepared):
        trainer.train_and_evaluate(config)


def test_a_missing_package_is_listed_with_the_other_problems(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config.train.max_iters = 0
    with pytest.raises(UserError, match=r"(?s)max_iters.*gptjax\[wandb\].*log\.wandb=False"):
        trainer.train_and_evaluate(config)
    config.log.wandb = False
    assert wandb_run.problems(config.log) == []


def records_of(file):
    """The records of W&B's file: a log of LevelDB behind 7 bytes.

    Chunks in blocks of 32 KiB, of a checksum, a length and a kind; 1: a whole record, 4: its end.
    """
    from wandb.proto import wandb_internal_pb2

    data, position, record = file.read_bytes(), 7, b""
    while position + 7 < len(data):
        left = 32_768 - position % 32_768
        if left < 7:
            position += left
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            yield wandb_internal_pb2.Record.FromString(record)
            record = b""


@pytest.mark.slow
def test_a_training_is_sent_to_the_real_package(config, steps, tmp_path, monkeypatch):
    """Offline: what would be sent is in a file, with our id, our keys and every number."""
    pytest.importorskip("wandb", reason="needs the extra `wandb`")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(trainer, "StepFunctions", lambda *_: steps)
    config.workdir = str(tmp_path / "run")
    trainer.train_and_evaluate(config)
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    end = time.monotonic() + 60
    records = []
    while not records or records[-1].WhichOneof("record_type") != "exit":
        assert time.monotonic() < end  # a process of W&B's writes the file
        time.sleep(0.1)
        records = list(records_of(file))
    (run,) = [r.run for r in records if r.WhichOneof("record_type") == "run"]
    assert run.run_id == (tmp_path / "run" / "wandb_id").read_text() and run.project == "project"
    sent = {update.key: update.value_json for update in run.config.update}
    assert json.loads(sent["optim"]) == json.loads(config.optim.to_json())
    history = {}
    for record in records:
        items = record.history.item
        values = {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}
        history.setdefault(values.pop("_step", None), {}).update(values)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    n_values = 0
    for line in map(json.loads, lines):
        for name, value in line.items():
            if "/" in name and isinstance(value, int | float):
                assert history[line["step"]][name] == pytest.approx(value, nan_ok=True), name
                n_values += 1
    assert n_values > 50 and "val/loss" in history[config.train.max_iters]
