"""train.max_hours: training time over all starts."""

import logging
import time

from gptjax.train import trainer


def test_max_hours_counts_all_starts(config, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "gptjax")
    real = trainer.Trainer._dispatch
    monkeypatch.setattr(trainer.Trainer, "_dispatch", lambda self: time.sleep(0.1) or real(self))
    config.train.max_hours = 0.3 / 3600
    step = int(trainer.train_and_evaluate(config).step)
    assert 2 <= step < 8
    assert int(trainer.train_and_evaluate(config).step) == step  # not one more for each start
    assert f"Nothing left to train: {step} of 8 steps are done in train.max_hours" in caplog.text
    config.train.max_hours = 1.0
    assert int(trainer.train_and_evaluate(config).step) == 8


def test_no_process_trains_where_another_is_out_of_time(config, monkeypatch, caplog):
    """Clocks of processes differ by milliseconds, and so does what they find at the start."""
    caplog.set_level(logging.INFO, "gptjax")
    monkeypatch.setattr(trainer, "any_process", lambda mine: True)
    config.train.max_hours = 1.0
    assert int(trainer.train_and_evaluate(config).step) == 0
    assert "Nothing left to train: 0 of 8 steps are done in train.max_hours" in caplog.text
