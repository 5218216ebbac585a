"""Trains the runs of a sweep, each in a process of its own, several at a time."""

import collections
import contextlib
import datetime
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import app

from configs.cli import call
from configs.errors import UserError
from configs.workdir import completed
from data_pipeline.cores import usable_cores
from gptjax import main as training
from gptjax.common.signals import StopSignal
from gptjax.common.workdir import WorkdirLock, save_config
from gptjax.report import sweep_results
from gptjax.report.sweep_results import Row
from gptjax.sweep import trials
from gptjax.sweep.code_version import code_digest, commit
from gptjax.sweep.trials import Trial

_log = logging.getLogger(__name__)

_LOG = "log.txt"
_POLL = 0.2  # seconds between checks for a stop request


def _train(config: dict[str, Any], log: str, cores: Sequence[int]) -> None:
    """Runs gptjax.main with a configuration; the target of a new process."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if hasattr(os, "sched_setaffinity"):  # not on macOS
        os.sched_setaffinity(0, cores)  # before JAX starts, which makes a thread for each core
    app.run(lambda _: call(training.main, completed(config)), argv=["gptjax.main"])


class _Running(NamedTuple):
    trial: Trial
    process: Any  # of multiprocessing
    cores: list[int]
    started: float


class Runner:
    """Trains the pending runs of a sweep and writes their rows."""

    def __init__(self, waiting: Sequence[Trial], *, name: str, table: Path, jobs: int, keep: bool):
        """Divides the cores among `jobs` runs at a time; raises UserError if there are too few.

        The rows go to `table`, under the `name` of the sweep. Checkpoints of finished runs are
        removed unless `keep`.
        """
        cores = usable_cores()
        if not 1 <= jobs <= len(cores):
            raise UserError(f"--jobs={jobs}: must be from 1 to the {len(cores)} available cores.")
        share = len(cores) // jobs
        self._free = [cores[i * share : (i + 1) * share] for i in range(jobs)]
        self._waiting = collections.deque(waiting)
        self._total = len(waiting)
        self._running: list[_Running] = []
        self._name, self._table, self._keep = name, table, keep
        # Processes are forked from a server that has imported everything and has no threads, so
        # all runs use the sources as they are now.
        self._code = {"commit": commit(), "code": code_digest()}
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["gptjax.main"])

    def run(self) -> bool:
        """Trains; returns False if a stop request came before all runs had a row."""
        with StopSignal(self._announce) as stop, contextlib.ExitStack() as stack:
            stack.callback(self._terminate)
            terminated = False
            while self._running or (self._waiting and not stop.received):
                while self._free and self._waiting and not stop.received:
                    self._start(self._waiting.popleft())
                if stop.received and not terminated:
                    terminated = True
                    for running in self._running:
                        running.process.terminate()  # SIGTERM: stop with a checkpoint
                multiprocessing.connection.wait([r.process.sentinel for r in self._running], _POLL)
                for running in [r for r in self._running if not r.process.is_alive()]:
                    self._running.remove(running)
                    self._free.append(running.cores)
                    self._finish(running, stopping=stop.received)
        return not stop.received

    def _announce(self) -> str:
        return (
            f"{len(self._running)} runs stop with a checkpoint, {len(self._waiting)} have not "
            "started; the same command resumes."
        )

    def _start(self, trial: Trial) -> None:
        WorkdirLock(trial.workdir).release()  # fails while a run of a killed sweep continues
        save_config(trial.config, trial.workdir)
        cores = self._free.pop(0)
        process = self._context.Process(
            target=_train, args=(trial.config.to_dict(), str(trial.workdir / _LOG), cores)
        )
        process.start()
        self._running.append(_Running(trial, process, cores, time.monotonic()))

    def _finish(self, running: _Running, *, stopping: bool) -> None:
        """Writes the row of a run whose process has ended, unless it was stopped before its end."""
        trial, status = running.trial, running.process.exitcode
        wall = time.monotonic() - running.started
        results = sweep_results.measured(trial.workdir) if status == 0 else None
        if results is None and (stopping or status == 0):
            _log.info("%s stopped before its end.", trial.name)
            return
        if results is None:
            results = _reason(trial.workdir / _LOG, status)
        row: Row = {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            **self._code,
            "sweep": self._name,
            "setting": trial.setting,
            "seed": trial.seed,
            "overrides": trials.changes(trial.config),
        }
        if isinstance(results, str):
            row |= {"status": "failed", "reason": results}
            text = f"FAILED: {results}"
        else:
            row |= {"status": "done", "checkpoints_kept": self._keep, **results}
            text = (
                f"{results['bits_per_byte']:.4f} bits per byte | {results['tokens']:,} tokens in "
                f"{results['seconds']:.1f} s of training, {wall:.1f} s in all"
            )
        sweep_results.append(self._table, row)
        if row["status"] == "done" and not self._keep:
            trial.remove_checkpoints()
        ended = self._total - len(self._waiting) - len(self._running)
        _log.info("%d/%d %s | %s", ended, self._total, trial.name, text)

    def _terminate(self) -> None:
        """After an error: stops the runs with a checkpoint."""
        for running in self._running:
            running.process.terminate()
        for running in self._running:
            running.process.join()


def _reason(log: Path, status: int) -> str:
    """Returns why a run failed: its error message, or else its status and last line of log."""
    text = log.read_text(errors="replace").strip() if log.is_file() else ""
    _, separator, error = text.rpartition("\nerror: ")
    if status == 1 and separator:
        return " ".join(error.split())
    last = text.splitlines()[-1] if text else "nothing was logged"
    how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"status {status}"
    return f"{how}: {last}"
