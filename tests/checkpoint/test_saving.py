"""Saves in the background: retries, slow disks, val losses, exits."""

import dataclasses
import logging
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import state_of

from gptjax.checkpoint import NotFinite, RunProgress, manager, storage

ROOT = Path(__file__).parents[2]


class Clock:
    """Replaces the module `time`."""

    now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(manager, "time", clock)
    return clock


def full(*_):
    raise OSError(28, "No space left on device")


def test_failed_saves_are_retried_at_growing_intervals(
    checkpoints, initial, clock, monkeypatch, caplog
):
    state = state_of(initial, 2)
    tries = []

    def save():
        tries.append(clock.now)
        checkpoints.save(state, RunProgress())
        assert checkpoints.wait()

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write", full)
        save()
        for _ in range(4000):
            clock.now += 1
            if checkpoints.save_due():
                save()
    gaps = np.diff(tries)
    assert list(gaps[:4]) == [10, 20, 40, 80]
    assert max(gaps) == gaps[-1] == 600
    assert "step 2 could not be saved (OSError: [Errno 28] No space left" in caplog.text
    assert "GB free); those before it are untouched. The next try is in 10s" in caplog.text
    assert checkpoints.latest_step == 1
    while not checkpoints.save_due():
        clock.now += 1
    real = storage.write

    def slow(*args):
        real(*args)
        clock.now += 2

    monkeypatch.setattr(storage, "write", slow)
    with caplog.at_level(logging.INFO, "gptjax"):
        save()
    assert not checkpoints.save_due() and checkpoints.latest_step == 2
    assert checkpoints.save_seconds == 2 and "Saving works again" in caplog.text


def test_the_delay_has_a_bound_after_any_number_of_failures(checkpoints, clock):
    checkpoints._failures = 10_000
    checkpoints._failed(OSError())
    assert checkpoints._next_try == 600


def test_a_slow_disk_does_not_stop_training(checkpoints, initial, monkeypatch, caplog):
    proceed = threading.Event()
    real = storage.write

    def slow(*args):
        assert proceed.wait(60)
        real(*args)

    monkeypatch.setattr(storage, "write", slow)
    monkeypatch.setattr(manager, "_PATIENCE", 0.1)
    checkpoints.save(state_of(initial, 2), RunProgress())  # returns although nothing is written
    assert not checkpoints.wait(0) and checkpoints.latest_step == 1
    checkpoints.save(state_of(initial, 3), RunProgress())  # gives up
    assert "disk is slow: the checkpoint of step 2 is still being written" in caplog.text
    assert not checkpoints.save_due()
    proceed.set()
    assert checkpoints.wait() and checkpoints.latest_step == 2
    assert checkpoints.save_due()
    checkpoints.save(state_of(initial, 4), RunProgress())
    checkpoints.finish(state_of(initial, 4), RunProgress())
    assert not checkpoints.save_due() and checkpoints.latest_step == 4
    assert not (checkpoints._folder / "3").exists()


def test_a_save_waits_for_the_one_before(checkpoints, initial, monkeypatch):
    proceed = threading.Event()
    real = storage.write

    def slow(*args):
        assert proceed.wait(60)
        real(*args)

    monkeypatch.setattr(storage, "write", slow)
    checkpoints.save(state_of(initial, 2), RunProgress())
    threading.Timer(0.2, proceed.set).start()
    checkpoints.save(state_of(initial, 3), RunProgress())
    assert checkpoints.latest_step == 2 or checkpoints.wait()
    assert checkpoints.wait() and checkpoints.latest_step == 3


def test_a_second_try_keeps_the_val_loss_of_its_step(checkpoints, initial, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(storage, "write", full)
        checkpoints.save(state_of(initial, 2), RunProgress(), 2.5)
        assert checkpoints.wait() and not checkpoints.save_due()
    checkpoints.finish(state_of(initial, 2), RunProgress())
    assert storage.read_meta(checkpoints._folder / "2")["val_loss"] == 2.5
    checkpoints.finish(state_of(initial, 3), RunProgress())  # this one was not evaluated
    assert storage.read_meta(checkpoints._folder / "3")["val_loss"] is None
    assert storage.by_val_loss(checkpoints._folder) == [2]  # the older ones have been removed


def test_a_state_that_is_not_finite_is_not_saved(checkpoints, initial):
    for step, where in enumerate(("params", "opt_state"), 2):
        state = state_of(initial, step)
        leaves, tree = jax.tree.flatten(getattr(state, where))
        i = next(i for i, leaf in enumerate(leaves) if leaf.ndim == 2)
        leaves[i] = leaves[i].at[-1, -1].set(jnp.nan)
        bad = dataclasses.replace(state, **{where: jax.tree.unflatten(tree, leaves)})
        with pytest.raises(NotFinite, match=rf"in 1 arrays, the first: {where}/"):
            checkpoints.finish(bad, RunProgress())
    assert [p.name for p in checkpoints._folder.iterdir()] == ["1"]
    checkpoints.finish(state_of(initial, 4), RunProgress())
    assert checkpoints.latest_step == 4


def test_a_state_that_is_not_finite_is_logged_and_the_next_one_is_saved(
    checkpoints, initial, monkeypatch, caplog
):
    monkeypatch.setattr(manager, "_FIRST_DELAY", 0.0)
    state = state_of(initial, 2)
    bad = dataclasses.replace(state, params={**state.params, "wte": jnp.full(3, jnp.nan)})
    checkpoints.save(bad, RunProgress())
    checkpoints.wait()
    assert "could not be saved (NotFinite: the state after step 2 is not finite" in caplog.text
    assert checkpoints.save_due()
    checkpoints.save(state_of(initial, 3), RunProgress())
    assert checkpoints.wait() and checkpoints.latest_step == 3


def test_what_belongs_to_a_checkpoint_is_written_before_it(checkpoints, initial):
    seen = []
    checkpoints.before_save = lambda: seen.append(checkpoints.latest_step)
    checkpoints.finish(state_of(initial, 2), RunProgress())
    assert seen == [1]

    def fail():
        raise OSError(30, "Read-only file system")

    checkpoints.before_save = fail
    checkpoints.save(state_of(initial, 3), RunProgress())
    assert checkpoints.wait() and checkpoints.latest_step == 2


LEAVE = """
import pathlib, sys, threading, types
import jax
from gptjax.checkpoint import manager, storage
manager.identity = lambda *_: {}
writing = threading.Event()
def write(*_):
    writing.set()
    threading.Event().wait()
storage.write = write
checkpoints = manager.Checkpoints(pathlib.Path(sys.argv[1]), None, None)
arrays = dict(params={}, opt_state={}, dropout_key=jax.numpy.zeros(2), ema_params=None)
state = types.SimpleNamespace(step=1, **arrays)
checkpoints.save(state, manager.RunProgress())
assert writing.wait(60)
"""


def test_a_process_that_exits_does_not_wait_for_its_save(tmp_path):
    command = [sys.executable, "-c", LEAVE, str(tmp_path)]
    subprocess.run(command, cwd=ROOT, timeout=60, check=True)
    assert list((tmp_path / "checkpoints").iterdir()) == []
