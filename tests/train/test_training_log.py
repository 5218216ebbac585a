"""What a run reports of its steps."""

import copy
import logging

import pytest

from data_pipeline.subset import training_rows
from gptjax.checkpoint import RunProgress
from gptjax.train import training_log
from gptjax.train.callbacks import PeriodicCallback
from gptjax.train.training_log import DispatchedStep, TrainingLog, training_line


def test_a_console_line_marks_unknown_values():
    names = ("train/loss", "train/bits_per_byte", "optim/learning_rate", "optim/grad_norm")
    values = dict.fromkeys((*names, "perf/tokens_per_sec", "perf/mfu"))
    line = training_line({**values, "data/epoch": 0.5, "optim/skipped_steps": 3}, None)
    assert line.startswith("train loss n/a") and "eta n/a" in line and line.endswith("skipped 3")
    assert "skipped" not in training_line({**values, "data/epoch": 0, "optim/skipped_steps": 0}, 9)


@pytest.fixture
def log(debug_config, store, steps, initial, tmp_path):
    config = copy.deepcopy(debug_config)
    config.workdir = str(tmp_path)
    config.train.max_iters, config.train.log_interval = 100, 10
    rows = training_rows(config, store)
    log = TrainingLog(config, steps.model_config, None, rows, initial, RunProgress())
    yield log
    log.close()


def test_the_time_left_includes_callbacks(log, monkeypatch, caplog):
    now = 0.0
    monkeypatch.setattr(training_log.time, "monotonic", lambda: now)
    log.clock._now = lambda: now
    log.clock._since = now
    log.window.restart()
    assert "neither has been timed yet" in log.stop_notice(None)
    names = ("nats", "n_targets", "n_bytes", "grad_norm", "param_norm", "learning_rate")
    metrics = {**dict.fromkeys((*names,), 1.0), "skipped": 0, "skipped_in_a_row": 0}
    for step in range(1, 11):
        if step == 10:
            for interval, seconds in ((0, 7), (30, 5)):  # at the end only; 3 more times
                with log.clock.paused(), log.running(PeriodicCallback(interval, print)):
                    now += seconds
        now += 2
        with caplog.at_level(logging.INFO):
            log.add(DispatchedStep(step, 0, {**metrics, "nats_A": None}))
    left = 90 * 2 + 7 + 3 * 5
    (line,) = [text for text in caplog.messages if "train loss" in text]
    assert line.startswith("step  10/100 | ") and f"eta {left // 60}m {left % 60:02}s" in line
    assert log.stop_notice(3.0).endswith("within about 8s.")  # two steps, a save and a second
    assert log.progress["tokens_seen"] == 10


def test_other_processes_report_nothing(log, monkeypatch, caplog):
    log._is_shown = False
    with caplog.at_level(logging.INFO):
        log.add_validation(1, {"loss": 1.0, "bits_per_byte": 1.0}, is_best=True, seconds=1.0)
    assert not [text for text in caplog.messages if "val loss" in text]
