"""Runs the settings x seeds that a file declares, each in a process of its own, and compares them.

    python -m gptjax.sweep --sweep=benchmarks/sweeps/example.py
    python -m gptjax.sweep --sweep=benchmarks/sweeps/example.py --summary --reference=recipe

Every run is checked before the first starts. Each gets a workdir in runs/sweeps/NAME/ with its
log.txt, and a row in results.jsonl there (see report/sweep_results.py); one that fails has
a row with its reason. The same command goes on where it was stopped or killed, and leaves out what
has a row. With --jobs=2, two runs share the machine, each on cores of its own. At the end, or with
--summary at once, tables are printed as Markdown. `gptjax.report --workdir=runs/sweeps/NAME` has
them, too, and draws the runs.
"""

import collections
import contextlib
import datetime
import logging
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import configs
from configs.cli import define_config, run
from configs.errors import UserError
from gptjax import main as training
from gptjax.common.lock import WorkdirLock
from gptjax.common.signals import StopSignal
from gptjax.common.workdir import CHECKPOINTS, save_config
from gptjax.report import sweep_results
from gptjax.report.sweep_results import Row
from gptjax.sweep import trials
from gptjax.sweep.code_version import code_digest, commit
from gptjax.sweep.trials import Trial

_log = logging.getLogger(__name__)

_LOG = "log.txt"
_POLL = 0.2  # seconds between looks for a wish to stop


def _train(workdir: str, log: str, cores: Sequence[int]) -> None:
    """The program gptjax.main on a workdir's config.json, in a process of its own."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.sched_setaffinity(0, cores)  # before JAX starts: it takes a thread for each core it may use
    file = Path(configs.__file__).with_name("workdir.py")
    sys.argv = ["gptjax.main", f"--config={file}:{workdir}"]
    define_config()
    run(training.main)


class _Running(NamedTuple):
    trial: Trial
    process: Any  # of multiprocessing
    cores: Sequence[int]
    started: float


class Sweep:
    """The runs of a sweep that are still to be made."""

    def __init__(self, waiting: Sequence[Trial], *, name: str, table: Path, jobs: int, keep: bool):
        """Starts nothing yet.

        Args:
            waiting: the runs, in order.
            name: of the sweep, for the rows.
            table: where rows go.
            jobs: runs at a time; the cores are shared out among them.
            keep: whether the checkpoints of a run stay when it is done.

        Raises:
            UserError: there are fewer cores than jobs.
        """
        cores = sorted(os.sched_getaffinity(0))
        if not 1 <= jobs <= len(cores):
            raise UserError(f"--jobs={jobs}: this machine has {len(cores)} cores to share out.")
        share = len(cores) // jobs
        self._free = [cores[i * share : (i + 1) * share] for i in range(jobs)]
        self._waiting = collections.deque(waiting)
        self._total = len(waiting)
        self._running: list[_Running] = []
        self._name, self._table, self._keep = name, table, keep
        # Processes are forked from one that has imported everything, and started no thread: so all
        # runs are of the sources as they are now.
        self._code = {"commit": commit(), "code": code_digest()}
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["gptjax.main"])

    def run(self) -> bool:
        """Makes the runs; returns False if it was stopped before all had a row."""
        with StopSignal(self._announce) as stop, contextlib.ExitStack() as stack:
            stack.callback(self._end)
            asked = False
            while self._running or (self._waiting and not stop.received):
                while self._free and self._waiting and not stop.received:
                    self._start(self._waiting.popleft())
                if stop.received and not asked:
                    asked = True
                    for running in self._running:
                        running.process.terminate()  # SIGTERM: stop with a checkpoint
                multiprocessing.connection.wait([r.process.sentinel for r in self._running], _POLL)
                for running in [r for r in self._running if not r.process.is_alive()]:
                    self._running.remove(running)
                    self._free.append(list(running.cores))
                    self._finish(running, stopping=stop.received)
        return not stop.received

    def _announce(self) -> str:
        return (
            f"{len(self._running)} stop with a checkpoint, {len(self._waiting)} are not begun; "
            f"the same command goes on."
        )

    def _start(self, trial: Trial) -> None:
        WorkdirLock(trial.workdir).release()  # an orphan of a killed sweep may still use it
        save_config(trial.config, trial.workdir)
        cores = self._free.pop(0)
        process = self._context.Process(
            target=_train, args=(str(trial.workdir), str(trial.workdir / _LOG), cores)
        )
        process.start()
        self._running.append(_Running(trial, process, cores, time.monotonic()))

    def _finish(self, running: _Running, *, stopping: bool) -> None:
        """Writes the row of a run whose process has ended; none if it was only stopped."""
        trial, status = running.trial, running.process.exitcode
        wall = time.monotonic() - running.started
        found = sweep_results.measured(trial.workdir) if status == 0 else None
        if found is None and (stopping or status == 0):
            _log.info("%s stopped before its end.", trial.name)
            return
        if found is None:
            found = _reason(trial.workdir / _LOG, status)
        row: Row = {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            **self._code,
            "sweep": self._name,
            "setting": trial.setting,
            "seed": trial.seed,
            "overrides": trials.changes(trial.config),
        }
        if isinstance(found, str):
            row |= {"status": "failed", "reason": found}
            told = f"FAILED: {found}"
        else:
            row |= {"status": "done", "checkpoints_kept": self._keep, **found}
            told = (
                f"{found['bits_per_byte']:.4f} bits per byte | {found['tokens']:,} tokens in "
                f"{found['seconds']:.1f} s of training, {wall:.1f} s in all"
            )
        sweep_results.append(self._table, row)
        if row["status"] == "done" and not self._keep:
            _remove_checkpoints(trial)
        ended = self._total - len(self._waiting) - len(self._running)
        _log.info("%d/%d %s | %s", ended, self._total, trial.name, told)

    def _end(self) -> None:
        """After an error: lets the runs under way stop with a checkpoint."""
        for running in self._running:
            running.process.terminate()
        for running in self._running:
            running.process.join()


def _remove_checkpoints(trial: Trial) -> None:
    shutil.rmtree(trial.workdir / CHECKPOINTS, ignore_errors=True)


def _reason(log: Path, status: int) -> str:
    """Returns why a run failed: its error in one line, or the last line that it wrote."""
    text = log.read_text(errors="replace").strip() if log.is_file() else ""
    _, found, error = text.rpartition("\nerror: ")
    if status == 1 and found:
        return " ".join(error.split())
    last = text.splitlines()[-1] if text else "nothing was logged"
    how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"status {status}"
    return f"{how}: {last}"
