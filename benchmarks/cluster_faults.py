"""Stops and kills one of several processes of a run, and compares with an uninterrupted run.

    python -m benchmarks.cluster_faults --events=60

A run of configs/debug.py in four processes. In turns: SIGTERM to a random process, SIGKILL of a
random process at a random moment, and `train.max_hours`. After SIGTERM and max_hours all processes
must leave with status 0 at one step, whose checkpoint is there; after SIGKILL all others must end,
not with 0, within the heartbeat and 10 seconds. In the end checkpoints, metrics and samples must be
bit-identical to those of the run that was not interrupted.
"""

import argparse
import collections
import itertools
import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.kill import _CONTEXT, _MOMENTS, KilledRun, compare, train
from benchmarks.measure import free_port

HEARTBEAT = 10  # seconds
_PATIENCE = 120.0  # seconds for what must end with status 0
_PROCESSES = 4


class ClusterRun(KilledRun):
    """A run of which several processes are started, and one is stopped or killed."""

    def start(self, name: str, *changes: str) -> list[Any]:
        """Starts the processes of the run in workdir `name`; each has a log."""
        port, processes = free_port(), []
        for i in range(_PROCESSES):
            self.log_of(i).write_text("")
            flags = (
                f"--coordinator=localhost:{port}",
                f"--processes={_PROCESSES}",
                f"--process={i}",
                f"--heartbeat_seconds={HEARTBEAT}",
                f"--config.workdir={self._folder / name}",
            )
            arguments = (*self._arguments, *flags, *changes)
            cache = str(self._folder / f"compiled-{i}")
            target = (arguments, cache, str(self.log_of(i)))
            processes.append(_CONTEXT.Process(target=train, args=target))
            processes[-1].start()
        return processes

    def log_of(self, i: int) -> Path:
        """Returns the path of the log of process i."""
        return self._folder / f"log-{i}"

    def logs(self, processes: Sequence[Any]) -> str:
        """Returns the ends of all logs, and the statuses."""
        texts = (
            f"[{i}] {p.exitcode}\n{self.log_of(i).read_text()[-2000:]}"
            for i, p in enumerate(processes)
        )
        return "\n".join(texts)

    def join(self, processes: Sequence[Any], seconds: float) -> float:
        """Waits until all have ended; returns how long. Else kills them: AssertionError."""
        start = time.monotonic()
        for process in processes:
            process.join(max(0.0, start + seconds - time.monotonic()))
        if any(process.is_alive() for process in processes):
            for process in processes:
                process.kill()
            raise AssertionError(f"not all ended in {seconds:g} s:\n{self.logs(processes)}")
        return time.monotonic() - start

    def newest(self, name: str) -> int:
        """Returns the step of the newest checkpoint, 0 without one."""
        folder = self._folder / name / "checkpoints"
        steps = [int(p.name) for p in folder.glob("*") if p.name.isdigit()]
        return max(steps, default=0)

    def complete(self, name: str) -> None:
        """Runs to the end without an interruption."""
        processes = self.start(name)
        self.join(processes, _PATIENCE)
        self.require(processes, all(p.exitcode == 0 for p in processes), "the run failed")

    def require(self, processes: Sequence[Any], holds: bool, text: str) -> None:
        """Raises AssertionError with the logs if something does not hold."""
        if not holds:
            raise AssertionError(f"{text}:\n{self.logs(processes)}")

    def wait_for(self, word: str, nth: int, processes: Sequence[Any]) -> None:
        """Waits until the log of process 0 has a word so many times, or a process has ended."""
        while self.log_of(0).read_text().count(word) < nth:
            if not all(process.is_alive() for process in processes):
                return
            time.sleep(0.005)

    def stop_one(self, name: str, kind: str) -> bool:
        """SIGTERM to one process, or max_hours; returns False if the run ended by itself."""
        before, changes = self.newest(name), []
        if kind == "max_hours":
            meta = self._folder / name / f"checkpoints/{before}/meta/metadata"
            trained = json.loads(meta.read_text())["progress"]["trained_seconds"] if before else 0
            seconds = trained + self._random.uniform(0.01, 0.3)
            changes = [f"--config.train.max_hours={seconds / 3600:.9f}"]
        processes = self.start(name, *changes)
        if kind == "SIGTERM":
            self.wait_for("First step", 1, processes)
            time.sleep(self._random.uniform(0, 1))
            self._random.choice(processes).terminate()
        self.join(processes, _PATIENCE)
        statuses = {process.exitcode for process in processes}
        finished = self.newest(name) == self.steps
        # What has finished, and is only sampling or leaving, may still be ended by the signal.
        good = statuses == {0} or (finished and statuses <= {0, -15, 143})
        self.require(processes, good, f"statuses {statuses} after {kind}")
        self.require(processes, finished or self.newest(name) > before, "no checkpoint")
        return not finished

    def kill_one(self, name: str) -> tuple[bool, float]:
        """SIGKILL of one; returns (False if the run ended by itself, seconds to the end)."""
        processes = self.start(name)
        if self._random.random() < 0.7:
            word, _ = self._random.choice(_MOMENTS)
            self.wait_for(word, self._random.randint(1, 3), processes)
            time.sleep(
                self._random.choice([0, self._random.uniform(0, 0.05), self._random.random()])
            )
        else:
            time.sleep(self._random.uniform(0, 10))
        victim = self._random.choice(processes)
        victim.kill()
        seconds = self.join(processes, HEARTBEAT + 10)
        if self.newest(name) == self.steps and victim.exitcode == 0:
            return False, seconds
        lines = self.log_of(0).read_text().splitlines()
        doing = next((m for line in reversed(lines) for w, m in _MOMENTS if w in line), "starting")
        self.kills[doing] += 1
        others = [p.exitcode for p in processes if p is not victim]
        # At its end, the others may have finished before they could notice.
        finished = self.newest(name) == self.steps
        self.require(processes, finished or 0 not in others, f"statuses {others} after SIGKILL")
        return True, seconds

    @property
    def steps(self) -> int:
        """The last step of the run."""
        text = next(a for a in self._arguments if a.startswith("--config.train.max_iters="))
        return int(text.partition("=")[2])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=60, help="a third of each kind")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    counts: collections.Counter[str] = collections.Counter()
    ends, runs, start = [], 0, time.monotonic()
    kinds = itertools.cycle(("SIGTERM", "SIGKILL", "max_hours"))
    with tempfile.TemporaryDirectory() as folder:
        stores = str(Path(folder) / "stores")
        run = ClusterRun(Path(folder), stores, steps=arguments.steps, seed=arguments.seed)
        run.finish("prepared", "compiled")  # several processes do not make the token store
        run.complete("whole")
        while counts.total() < arguments.events or (Path(folder) / "killed").exists():
            if counts.total() >= arguments.events:
                run.complete("killed")
            elif (kind := next(kinds)) == "SIGKILL":
                again, seconds = run.kill_one("killed")
                ends.append(seconds)
                counts[kind] += again
                if again:
                    continue
                run.complete("killed")  # to sample, and to write what is left
            elif run.stop_one("killed", kind):
                counts[kind] += 1
                print(f"\r{counts.total()} events", end="", flush=True)
                continue
            else:
                run.complete("killed")
            compare(run)
            shutil.rmtree(Path(folder) / "killed")
            runs += 1
        result = {
            "benchmark": "cluster faults",
            "events": dict(counts),
            "runs_compared": runs,
            "differences": 0,  # one would have raised
            "seconds_until_all_have_ended_after_SIGKILL": {
                "median": round(sorted(ends)[len(ends) // 2], 1),
                "longest": round(max(ends), 1),
            },
            "seconds": round(time.monotonic() - start),
            "moments_of_SIGKILL": dict(sorted(run.kills.items())),
        }
    print("\r" + json.dumps(result))


if __name__ == "__main__":
    main()
