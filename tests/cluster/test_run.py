"""A run of several processes: the real command under each launcher, and the death of one."""

import ast
import copy
import json
import re
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.prepare import prepare_all
from gptjax.train import trainer

ROOT = Path(__file__).parents[2]
HEARTBEAT = 10  # seconds


@pytest.fixture
def alone(debug_config, tmp_path):
    """Trains the same run in this process, in a workdir of its own; returns the lines of it."""

    def train(max_iters, workdir="alone", config=debug_config):
        config = copy.deepcopy(config)
        config.workdir = str(tmp_path / workdir)
        config.train.max_iters = max_iters
        config.eval.eval_interval, config.train.log_interval = 2, 1
        config.log.tensorboard = True
        trainer.train_and_evaluate(config)
        return read(config.workdir)

    return train


def read(workdir):
    lines = map(json.loads, (Path(workdir) / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "run/start_step" not in line]


def assert_same_run(lines, expected):
    assert [sorted(line) for line in lines] == [sorted(line) for line in expected]
    for a, b in zip(lines, expected, strict=True):
        assert a["step"] == b["step"]
        for name in a.keys() & {"train/loss", "val/loss", "data/tokens_seen"}:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-5)


def test_two_tasks_of_slurm_train_one_run(processes, alone):
    job = {
        "SLURM_JOB_ID": str(processes.free_port() - 61440),  # from which JAX makes its port
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURM_NTASKS": "2",
        "SLURM_NODEID": "0",
    }
    command = processes.command("train.max_iters=4")
    both = [
        processes.start(command, i, **job, SLURM_PROCID=str(i), SLURM_LOCALID=str(i))
        for i in (0, 1)
    ]
    assert [process.wait(timeout=600) for process in both] == [0, 0], processes.log(0)
    assert_same_run(read(processes.workdir), alone(4))
    for pattern in ("config.json", "tb/*", "samples/4.txt", "checkpoints/4"):
        assert len(list(processes.workdir.glob(pattern))) == 1, pattern
    log = processes.log(0)
    assert "[0] 2 processes: 0-1 on " in log and "2 x cpu, 1 of each process" in log
    assert not re.search(r"^\d\d:\d\d:\d\d (?!\[0\] )", log, re.MULTILINE)
    assert not re.search(r"^\d\d:\d\d:\d\d ", processes.log(1), re.MULTILINE)  # no warnings


@pytest.mark.slow
def test_mpirun(processes, alone):
    if shutil.which("mpirun") is None:
        pytest.skip("needs Open MPI (Debian: apt install openmpi-bin)")
    options = ("--allow-run-as-root", "--oversubscribe", "-n", "2")
    command = ["mpirun", *options, *processes.command("train.max_iters=4")]
    assert processes.start(command, "mpirun").wait(timeout=600) == 0, processes.log("mpirun")
    assert "[0] 2 processes: 0-1 on " in processes.log("mpirun")
    assert_same_run(read(processes.workdir), alone(4))


@pytest.mark.slow
def test_ray(processes, alone):
    pytest.importorskip("ray", reason="needs the extra `ray`")
    arguments = [*processes.arguments, "train.max_iters=4", "--workers=2"]
    command = [sys.executable, "-m", "gptjax.on_ray", *arguments]
    assert processes.start(command, "ray").wait(timeout=600) == 0, processes.log("ray")
    assert "[0] 2 processes: 0-1 on " in processes.log("ray")
    assert_same_run(read(processes.workdir), alone(4))
    failing = processes.start([*command, "data.val_fraction=0.06"], "failing")  # another store
    assert failing.wait(timeout=600) == 1
    log = processes.log("failing")
    assert "[1] error: " in log and "worker 0: exit status 1" in log


@pytest.mark.slow
def test_several_processes_need_a_prepared_store(processes, tmp_path):
    started = processes.start_by_flags(2, "data.val_fraction=0.06")
    assert [process.wait(timeout=100) for process in started] == [1, 1]
    for i in (0, 1):
        assert f"[{i}] error: " in processes.log(i)
        assert "gptjax prepare" in processes.log(i)
        assert "Traceback" not in processes.log(i)
    assert not processes.workdir.exists()


DIES = """
import os, runpy, signal, jax
jax.distributed.initialize = lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL)
runpy.run_module("gptjax.main", run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
def test_a_process_that_dies_between_the_roll_call_and_jax_is_missed(processes):
    flags = [f"--coordinator=localhost:{processes.free_port()}", "--processes=2"]
    flags += [f"--heartbeat_seconds={HEARTBEAT}"]
    waiting = processes.start(processes.command(*flags, "--process=0"), 0)
    arguments = [*processes.arguments, *flags, "--process=1"]
    dying = processes.start([sys.executable, "-c", DIES, *arguments], 1)
    assert dying.wait(timeout=100) == -9
    assert waiting.wait(timeout=HEARTBEAT + 10) != 0
    assert "DEADLINE_EXCEEDED" in processes.log(0)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "killed", "then"), [(2, 1, 1), (2, 0, 4), (4, 2, 2), (1, 0, 2)])
def test_the_death_of_one_ends_all_and_any_number_continues(processes, alone, n, killed, then):
    started = processes.start_by_flags(
        n, "train.max_iters=10000", f"--heartbeat_seconds={HEARTBEAT}"
    )
    processes.wait_for("val loss", 0, count=3)
    started[killed].kill()
    died = time.monotonic()
    statuses = [process.wait(timeout=HEARTBEAT + 10) for process in started]
    print(f"gone after {time.monotonic() - died:.1f} s: {statuses}")
    assert statuses[killed] == -9 and 0 not in statuses
    steps = [int(p.name) for p in (processes.workdir / "checkpoints").iterdir() if p.name.isdigit()]
    end = max(steps) + 4
    continued = processes.start_by_flags(then, f"train.max_iters={end}")
    assert [process.wait(timeout=600) for process in continued] == [0] * then, processes.log(0)
    assert "Continuing from" in processes.log(0)
    assert_same_run(read(processes.workdir), alone(end))


@pytest.mark.slow
def test_a_mixture_that_one_of_four_processes_stops_continues_on_any_number(
    processes, alone, mixture_config
):
    weights = "((40,(0.0,1)),)"  # which change after the stop
    mixture_config.data.mixture_schedule = ast.literal_eval(weights)
    prepare_all(mixture_config)
    data = f"data.mixture={mixture_config.data.mixture}", f"data.mixture_schedule={weights}"
    arguments = (*data, "data.source=", "data.val_fraction=0.1", "train.max_iters=60")
    arguments += ("optim.lr_decay_iters=60", "sample.prompts=()")
    started = processes.start_by_flags(4, *arguments)
    processes.wait_for("val loss", 0, count=3)
    started[2].terminate()
    assert [process.wait(timeout=100) for process in started] == [0] * 4, processes.log(2)
    (stop,) = {line["step"] for line in read(processes.workdir)[-1:]}
    assert 6 <= stop < 40
    for n in (4, 1):
        folder = processes.folder / f"on-{n}"
        shutil.copytree(processes.workdir, folder)
        continued = processes.start_by_flags(n, *arguments, f"workdir={folder}")
        assert [process.wait(timeout=600) for process in continued] == [0] * n, processes.log(0)
        assert "Continuing from" in processes.log(0)
    mixture_config.optim.lr_decay_iters = 60
    expected = alone(60, config=mixture_config)
    for n in (4, 1):
        assert_same_run(read(processes.folder / f"on-{n}"), expected)
