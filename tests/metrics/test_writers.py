"""metrics.jsonl and TensorBoard agree after restarts, kills and incomplete lines."""

import copy
import json
import math
import time

import pytest
from tensorboardX.crc32c import crc32c

from benchmarks.kill import read_events
from gptjax.metrics import tensorboard
from gptjax.metrics.writers import MetricsWriter


@pytest.fixture
def config(debug_config):
    config = copy.deepcopy(debug_config)
    config.log.tensorboard = True
    return config


def write(config, workdir, start, stop):
    writer = MetricsWriter(workdir, config, start)
    for step in range(start + 1, stop + 1):
        writer.write(step, {"train/loss": step / 4, "perf/mfu": None, "skipped/documents": ["a:1"]})
    writer.close()


def expected(steps):
    return [(step, "train/loss", step / 4) for step in steps]


def test_a_restart_forgets_steps_that_were_lost(config, tmp_path):
    write(config, tmp_path, 0, 10)
    write(config, tmp_path, 6, 8)  # restored at 6
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert lines[0]["perf/mfu"] is None and lines[0]["skipped/documents"] == ["a:1"]
    assert abs(lines[-1]["time"] - time.time()) < 60
    assert read_events(tmp_path / "tb") == expected(range(1, 9))


def test_a_kill_between_the_two_event_files_is_harmless(config, tmp_path, monkeypatch):
    write(config, tmp_path, 0, 4)
    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), "unlink", lambda self, missing_ok=False: None)
        write(config, tmp_path, 3, 5)
    assert len(list((tmp_path / "tb").glob("events*"))) == 2
    assert read_events(tmp_path / "tb") == expected(range(1, 6))
    write(config, tmp_path, 5, 6)
    assert len(list((tmp_path / "tb").glob("events*"))) == 1
    assert read_events(tmp_path / "tb") == expected(range(1, 7))


def test_event_files_have_the_checksums_of_tensorflow():
    """The first record of every TensorBoard file, as TensorFlow writes it."""
    record = tensorboard.encode({"step": 0, "time": 0.0})
    length = int.from_bytes(record[:8], "little")
    assert len(record) == length + 16
    for data, stored in ((record[:8], record[8:12]), (record[12:-4], record[-4:])):
        crc = crc32c(data)
        masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF  # tensorflow/core/lib/hash
        assert int.from_bytes(stored, "little") == masked
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720's check value


def test_non_finite_values_become_null(config, tmp_path):
    writer = MetricsWriter(tmp_path, config, 0)
    writer.write(1, {"train/loss": math.nan, "optim/grad_norm": math.inf, "val/loss": 2.0})
    writer.close()
    (line,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert line["train/loss"] is line["optim/grad_norm"] is None
    assert read_events(tmp_path / "tb") == [(1, "val/loss", 2.0)]


def test_incomplete_lines_are_dropped(config, tmp_path, caplog):
    write(config, tmp_path, 0, 2)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'[]\n{"step": 3, "tr\xff')
    write(config, tmp_path, 2, 3)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert caplog.text.count("dropped an incomplete line") == 2
