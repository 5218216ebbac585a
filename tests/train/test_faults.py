"""Full disks, deleted folders, bad steps, signals: a run continues, or reports why it cannot."""

import contextlib
import copy
import errno
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from test_resume import assert_same_bits, metric_lines

from configs.errors import UserError
from data_pipeline.packing import PackedRows
from gptjax.checkpoint import Checkpoints, manager
from gptjax.common import signals
from gptjax.metrics import writers
from gptjax.train import duration, trainer

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(config):
    config.eval.eval_interval = 2
    return config


@pytest.fixture(autouse=True)
def capture_info(caplog):
    caplog.set_level(logging.INFO, "gptjax")


@pytest.fixture
def quick_retries(monkeypatch):
    monkeypatch.setattr(manager, "_FIRST_DELAY", 0.0)
    monkeypatch.setattr(manager, "_LAST_DELAY", 0.0)


def fail_saves(monkeypatch, which, error):
    """Makes the saves whose numbers (from 1) are in `which` fail, before they write anything."""
    real, calls = Checkpoints._start, []

    def start(self, state, progress):
        calls.append(int(state.step))
        if len(calls) in which:
            raise error
        return real(self, state, progress)

    monkeypatch.setattr(Checkpoints, "_start", start)
    return calls


NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.usefixtures("quick_retries")
def test_a_failed_save_is_repeated_and_the_run_is_the_same(monkeypatch, config, tmp_path, caplog):
    whole = trainer.train_and_evaluate(config)
    other = copy.deepcopy(config)
    other.workdir = str(tmp_path / "other")
    calls = fail_saves(monkeypatch, {2}, NO_SPACE)
    state = trainer.train_and_evaluate(other)
    assert "step 4 could not be saved (OSError: [Errno 28] No space left" in caplog.text
    assert "Saving works again" in caplog.text
    assert calls[:3] == [2, 4, 4]  # repeated at once, not at the next evaluation
    assert_same_bits(jax.device_get(state), jax.device_get(whole))
    assert metric_lines(other) == metric_lines(config)


@pytest.mark.usefixtures("quick_retries")
def test_a_failed_last_save_is_an_error_and_the_run_can_be_resumed(
    monkeypatch, config, tmp_path, caplog
):
    whole = jax.device_get(trainer.train_and_evaluate(config))
    config.workdir = str(tmp_path / "other")
    with monkeypatch.context() as patch:
        fail_saves(patch, range(4, 100), OSError(errno.EROFS, os.strerror(errno.EROFS)))
        with pytest.raises(UserError, match=r"step 8 could not be saved.*Read-only.*of step 6"):
            trainer.train_and_evaluate(config)
    assert_same_bits(jax.device_get(trainer.train_and_evaluate(config)), whole)


def test_an_unwritable_workdir_is_reported_before_training(monkeypatch, config):
    def fail(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(trainer, "write_atomically", fail)
    with pytest.raises(UserError, match="cannot be written .Read-only.*config.workdir"):
        trainer.train_and_evaluate(config)


# Another process may be limited to files of some size: writing beyond fails like a full disk does.
LIMITED = """
import resource, signal, sys, logging
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from configs import cli, debug
from gptjax.checkpoint import manager
from gptjax.train import trainer
manager._FIRST_DELAY = 0.0
manager._LAST_DELAY = 0.0
config = debug.get_config()
config.workdir, config.data.cache_dir = sys.argv[1:3]
config.sample.prompts = ()
config.train.log_interval = 1
config.train.max_iters = 12
config.eval.eval_interval = 2
config.log.tensorboard = True
limit_from, limit_to = map(int, sys.argv[3:])
real = trainer.Trainer._dispatch
def dispatch(run):
    if run.step == limit_from:
        run._checkpoints.wait()  # a save in progress is not affected
    soft = 20_000 if limit_from <= run.step < limit_to else resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, resource.RLIM_INFINITY))
    return real(run)
trainer.Trainer._dispatch = dispatch
cli.call(trainer.train_and_evaluate, config)
"""


def limited(config, workdir, limit_from, limit_to):
    arguments = (workdir, config.data.cache_dir, limit_from, limit_to)
    return subprocess.run(
        [sys.executable, "-c", LIMITED, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_disk_that_is_full_for_a_while(config, tmp_path):
    """Real writes that fail in the middle, in Orbax's threads too; then all is as it should be."""
    assert limited(config, tmp_path / "whole", 99, 99).returncode == 0
    result = limited(config, tmp_path / "run", 3, 7)
    assert result.returncode == 0, result.stderr
    assert "could not be saved" in result.stderr and "Saving works again" in result.stderr
    assert "Traceback" not in result.stderr
    left = [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()]
    assert "12" in left and not [name for name in left if "tmp" in name]
    same = copy.deepcopy(config)
    same.workdir = str(tmp_path / "whole")
    config.workdir = str(tmp_path / "run")
    assert metric_lines(config) == metric_lines(same)


@pytest.mark.slow
def test_a_disk_that_stays_full_is_reported_at_the_end(config, tmp_path):
    result = limited(config, tmp_path / "run", 3, 99)
    assert result.returncode == 1
    assert "error: the state of step 12 could not be saved" in result.stderr
    assert "newest good checkpoint is that of step 2" in result.stderr
    assert "Traceback" not in result.stderr
    result = limited(config, tmp_path / "run", 99, 99)  # there is room again
    assert result.returncode == 0, result.stderr
    assert "Continuing from" in result.stderr and "step 12/12" in result.stderr


def test_a_deleted_workdir_is_written_again(monkeypatch, config, caplog):
    real = trainer.Trainer._dispatch

    def dispatch(self):
        if self.step == 5:
            self._checkpoints.wait()
            shutil.rmtree(config.workdir)
        return real(self)

    monkeypatch.setattr(trainer.Trainer, "_dispatch", dispatch)
    trainer.train_and_evaluate(config)
    assert "has disappeared" in caplog.text and "has lost its files" in caplog.text
    workdir = Path(config.workdir)
    assert {p.name for p in workdir.iterdir()} >= {"config.json", "tokenizer.model"}
    lines = metric_lines(config)
    assert lines[0]["step"] <= 6 and lines[-1]["step"] == 8
    monkeypatch.undo()
    config.train.max_iters = 9
    assert int(trainer.train_and_evaluate(config).step) == 9  # it is a good workdir


def test_lines_wait_for_a_full_disk_and_keep_their_order(monkeypatch, tmp_path, caplog):
    path = tmp_path / "lines"
    file = writers.AppendedFile(path)
    room = 10
    real = os.write

    def write(fd, data):
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = real(fd, data[:room])
        room -= written
        return written

    monkeypatch.setattr(writers.os, "write", write)
    lines = [f"line {i}\n".encode() for i in range(6)]
    for line in lines[:4]:
        file.append(line)
    assert path.read_bytes() == b"".join(lines)[:10]  # the second line only in part
    room = 1000
    for line in lines[4:]:
        file.append(line)
    file.close()
    assert path.read_bytes() == b"".join(lines)
    assert caplog.text.count("cannot be written") == 1
    assert "no line was lost" in caplog.text


class Poisoned(trainer.StepFunctions):
    """The real step; batches whose first row is in `rows` have a loss that is not a number."""

    first_tokens: set = set()

    def _loss(self, params, micro, *others):
        total, nats = super()._loss(params, micro, *others)
        bad = [jnp.all(micro["inputs"][0] == jnp.asarray(row)) for row in self.first_tokens]
        is_bad = jnp.any(jnp.asarray(bad))
        return jnp.where(is_bad, jnp.nan, total), jnp.where(is_bad, jnp.nan, nats)


def poison_steps(monkeypatch, config, store, steps):
    """Spoils the second micro-step of these optimizer steps; returns its documents, by step."""
    split = store.split("train")
    rows = PackedRows(
        split, block_size=32, seed=config.seed, bos_id=store.tokenizer.bos_id, segments=False
    )
    size, micro_steps = config.train.batch_size, config.train.gradient_accumulation_steps
    first = {step: ((step - 1) * micro_steps + 1) * size for step in steps}
    monkeypatch.setattr(
        Poisoned, "first_tokens", {tuple(rows[g].inputs.tolist()) for g in first.values()}
    )
    monkeypatch.setattr(trainer, "StepFunctions", Poisoned)
    return {
        step: {split.doc_id(s.document) for b in range(size) for s in rows.spans(g + b)}
        for step, g in first.items()
    }


def test_skipped_steps_are_reported_with_documents(monkeypatch, config, store, tmp_path, caplog):
    documents = poison_steps(monkeypatch, config, store, {3, 4, 7})
    state = trainer.train_and_evaluate(config)
    assert int(state.step) == 8
    lines = metric_lines(config)
    skipped = {line["step"]: line for line in lines if "skipped/documents" in line}
    assert sorted(skipped) == [3, 4, 7]
    for step, line in skipped.items():
        assert set(line["skipped/documents"]) == documents[step]
        assert line["skipped/micro_steps"] == [1] and line["skipped/loss"] is None
        assert f"Step {step} was skipped: loss nan" in caplog.text
    counts = {line["step"]: line["optim/skipped_steps"] for line in lines if "train/loss" in line}
    assert counts == {1: 0, 2: 0, 3: 1, 4: 2, 5: 2, 6: 2, 7: 3, 8: 3}
    losses = {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}
    assert losses[3] is losses[4] is losses[7] is None and losses[5] > 0
    # Step 4 is an evaluation's: its checkpoint waits until a step has been good.
    assert "its checkpoint waits" in caplog.text

    stopped = copy.deepcopy(config)
    stopped.workdir = str(tmp_path / "stopped")
    for max_iters in (4, 8):  # stops between bad steps
        stopped.train.max_iters = max_iters
        resumed = trainer.train_and_evaluate(stopped)
    assert_same_bits(jax.device_get(resumed), jax.device_get(state))
    assert metric_lines(stopped) == metric_lines(config)


def test_too_many_bad_steps_in_a_row_stop_the_run_with_a_remedy(monkeypatch, config, store):
    poison_steps(monkeypatch, config, store, {4, 5, 6, 7})
    config.train.max_consecutive_skips = 3
    with pytest.raises(UserError, match=r"step 6 is number 3 in a row.*learning_rate"):
        trainer.train_and_evaluate(config)
    saved = sorted(int(p.name) for p in (Path(config.workdir) / "checkpoints").iterdir())
    assert saved == [2]  # 4 and 6 were evaluated, and not good


PROGRAM = [sys.executable, "-u", "-m", "gptjax.main", "--config=configs/debug.py"]


@contextlib.contextmanager
def default_signals():
    """Children started inside do not inherit signals that `nohup` or `&` of a shell ignore."""
    before = {n: signal.signal(n, signal.SIG_DFL) for n in (signal.SIGINT, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def launch(config, workdir, *arguments):
    """Starts a program that trains until it is stopped."""
    command = [
        *PROGRAM,
        f"--config.workdir={workdir}",
        f"--config.data.cache_dir={config.data.cache_dir}",
        "--config.train.max_iters=1000000",
        *arguments,
    ]
    with default_signals():
        return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def start(config, workdir):
    """Starts such a program; returns it when step 100 is logged."""
    program = launch(config, workdir)
    read = []
    for line in program.stderr:
        read.append(line)
        if "step     100/" in line and "val" not in line:  # some checkpoints were made, and timed
            return program
    raise AssertionError("".join(read))


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_and_exits_0_in_the_announced_time(config, tmp_path, number):
    program = start(config, tmp_path / "run")
    begin = time.monotonic()
    program.send_signal(number)
    try:
        _, text = program.communicate(timeout=60)
    finally:
        program.kill()  # one that ignored the signal would train forever
    seconds = time.monotonic() - begin
    assert program.returncode == 0, text
    (bound,) = [line for line in text.splitlines() if "within about" in line]
    assert number.name in bound
    assert seconds < float(bound.split("within about ")[1].split("s.")[0]) + 2  # and to leave
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    newest = max(int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert newest >= json.loads(lines[-1])["step"] >= 100


@pytest.mark.slow
def test_max_hours_stops_the_same_way(config, tmp_path):
    program = launch(config, tmp_path / "run", "--config.train.max_hours=0.001")
    _, text = program.communicate(timeout=60)
    assert program.returncode == 0, text
    assert "train.max_hours = 0.001 is reached: stopping after this step" in text
    assert any((tmp_path / "run" / "checkpoints").iterdir())


BUSY = """
import hashlib, logging
logging.basicConfig(level=logging.INFO)
from gptjax.common.signals import StopSignal
with StopSignal(lambda: "stopping within 3s."):
    print("ready", flush=True)
    # Busy outside the interpreter, as while JAX compiles: no handler of Python's can run.
    hashlib.pbkdf2_hmac("sha256", b"", b"", 200_000_000)
"""


def test_a_second_ctrl_c_exits_at_once_even_while_the_main_thread_is_busy():
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with default_signals():
        program = subprocess.Popen([sys.executable, "-c", BUSY], cwd=ROOT, **pipes)
    assert program.stdout.readline() == "ready\n"
    begin = time.monotonic()
    program.send_signal(signal.SIGINT)
    assert "stopping within 3s." in program.stderr.readline()  # reported at once
    program.send_signal(signal.SIGINT)
    assert program.wait(timeout=10) == 130
    assert time.monotonic() - begin < 5


def test_handlers_are_restored():
    before = [signal.getsignal(number) for number in signals._STOP_SIGNALS]
    with signals.StopSignal(lambda: "stopping.") as stop:
        assert not stop.received
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received
    assert [signal.getsignal(number) for number in signals._STOP_SIGNALS] == before


def test_an_ignored_hangup_stays_ignored():
    """What nohup does."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.StopSignal(lambda: "stopping.") as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.received
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_a_signal_in_the_first_step_ends_within_one_micro_step(config, tmp_path):
    """A step of minutes, in 2,000 micro-steps; there is nothing to save yet."""
    program = launch(
        config,
        tmp_path / "run",
        "--config.model.n_embd=256",
        "--config.train.batch_size=16",
        "--config.train.gradient_accumulation_steps=2000",
    )
    announced = next(line for line in program.stderr if "a step will take about" in line)
    seconds = float(re.search(r"took ([\d.]+) s", announced)[1])
    assert 0 < seconds < 5
    time.sleep(1.0)
    begin = time.monotonic()
    program.send_signal(signal.SIGTERM)
    try:
        _, text = program.communicate(timeout=30)
    finally:
        program.kill()
    assert time.monotonic() - begin < 1 + 4 * seconds
    assert program.returncode == 128 + signal.SIGTERM
    assert "SIGTERM: exiting at once" in text and "First step" not in text
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


def test_the_duration_of_a_step_is_announced_by_the_forward_pass(monkeypatch, config, caplog):
    config.train.max_iters = 2
    trainer.train_and_evaluate(config)
    assert "a step will take" not in caplog.text  # it takes milliseconds
    monkeypatch.setattr(duration, "_LONG_STEP", 0.0)
    monkeypatch.setattr(trainer.Validation, "seconds_per_batch", lambda *_: 50.0)
    config.train.max_iters = 14
    config.optim.lr_decay_iters = 20
    trainer.train_and_evaluate(config)
    # Two micro-steps of 3 x 50 s; 12 steps.
    assert "a step will take about 5m 00s, and the 12 left 1h 00m: a step has 2 " in caplog.text
