"""Kills a run repeatedly at random moments and compares its result with an uninterrupted run's.

    python -m benchmarks.kill --kills=200

Each process trains configs/debug.py with an evaluation and a checkpoint every other step. SIGKILL
comes after a random time, or some time after a line of its log: while it starts, compiles, steps,
evaluates, saves or cleans up. In the end parameters, optimizer state, data position, val losses and
all lines of metrics must be bit-identical to those of the uninterrupted run.
"""

import argparse
import collections
import json
import multiprocessing
import os
import random
import runpy
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

# Lines of the log, and what a process does after each.
_MOMENTS = (
    ("Plan for", "restoring or initialising"),
    ("Continuing from", "compiling the step"),
    ("First step", "after the first step"),
    ("train loss", "stepping or evaluating"),
    ("val loss", "saving, cleaning up, stepping"),
    ("Sample:", "at the end"),
)
_TIMED = ("time", "perf/", "data/wait_frac")  # metrics that depend on the time
_START = "run/start_step"  # logged at each start, so it depends on the kills

# Processes are forked from a server that has imported everything and has no threads.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["gptjax.main", "gptjax.metrics.tensorboard"])


def train(arguments: Sequence[str], cache: str, log: str) -> None:
    """Runs the command `gptjax.main` with these arguments; the target of a new process."""
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.chdir(ROOT)
    sys.argv = ["gptjax.main", *arguments]
    runpy.run_module("gptjax.main", run_name="__main__", alter_sys=True)


class KilledRun:
    """A run of which processes are started and killed."""

    def __init__(self, folder: Path, cache_dir: str, *, steps: int, seed: int):
        """Puts workdirs and compilation caches in `folder`; token stores are in `cache_dir`."""
        self._folder = folder
        self._random = random.Random(seed)
        self._arguments = (
            "--config=configs/debug.py",
            f"--config.data.cache_dir={cache_dir}",
            f"--config.train.max_iters={steps}",
            f"--config.optim.lr_decay_iters={steps}",
            "--config.train.log_interval=3",  # checkpoints fall into some of the windows
            "--config.eval.eval_interval=2",
            "--config.model.dropout=0.1",
            "--config.log.tensorboard=True",
            "--config.sample.prompts=('The ',)",
        )
        self.log = folder / "log"  # of the last process
        self.kills: collections.Counter[str] = collections.Counter()
        self.seconds = 0.0  # of the last process that was not killed

    def process(self, name: str, cache: str) -> Any:
        """Starts a process of the run in workdir `name`; it logs to `self.log`."""
        self.log.write_text("")
        arguments = (*self._arguments, f"--config.workdir={self._folder / name}")
        process = _CONTEXT.Process(
            target=train, args=(arguments, str(self._folder / cache), str(self.log))
        )
        process.start()
        return process

    def finish(self, name: str, cache: str) -> None:
        """Runs a process to its end; raises AssertionError if it fails."""
        start = time.monotonic()
        process = self.process(name, cache)
        process.join()
        self.seconds = time.monotonic() - start
        self._check(process, 0)

    def _check(self, process: Any, expected: int) -> None:
        if process.exitcode != expected:
            raise AssertionError(f"status {process.exitcode}:\n{self.log.read_text()}")

    def kill_once(self, name: str, cache: str) -> bool:
        """Starts a process and kills it at some moment; returns False if it ended earlier."""
        word = None
        delay = self._random.uniform(0, self.seconds)
        if self._random.random() < 0.6:
            word, _ = self._random.choice(_MOMENTS)
            delay = self._random.choice([0, self._random.uniform(0, 0.05), self._random.random()])
        nth = self._random.randint(1, 3)  # the first such line, or one of the next
        process = self.process(name, cache)
        while word and process.is_alive() and self.log.read_text().count(word) < nth:
            time.sleep(0.002)
        process.join(delay)
        process.kill()
        process.join()
        if process.exitcode == 0:
            return False
        self._check(process, -9)
        lines = self.log.read_text().splitlines()
        doing = next((m for line in reversed(lines) for w, m in _MOMENTS if w in line), "starting")
        self.kills[doing] += 1
        return True

    def results(self, name: str) -> dict[str, Any]:
        """Returns the contents of the checkpoints, metrics and samples, which must be the same."""
        workdir = self._folder / name
        checkpoints = workdir / "checkpoints"
        steps = sorted(p.name for p in checkpoints.iterdir())
        return {
            "checkpoints": steps,
            "contents": {step: read_checkpoint(checkpoints / step) for step in steps},
            "lines": read_lines(workdir),
            "events": read_events(workdir / "tb"),
            "samples": {p.name: p.read_text() for p in (workdir / "samples").iterdir()},
        }


def read_checkpoint(folder: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Returns the bytes of each array by item and name, and the progress without durations."""
    from gptjax.checkpoint import storage

    arrays, meta = storage.read(folder)
    contents = {
        f"{item}/{name}": array.tobytes()
        for item, named in arrays.items()
        for name, array in named.items()
    }
    progress = dict(meta["progress"])
    del progress["trained_seconds"]
    progress["window"] = progress["window"]["steps"]
    return contents, {"step": meta["step"], "val_loss": meta["val_loss"], **progress}


def read_lines(workdir: Path) -> list[dict[str, Any]]:
    """Returns the lines of metrics.jsonl without starts and without metrics that depend on time."""
    texts = (workdir / "metrics.jsonl").read_text().splitlines()
    lines = [json.loads(text) for text in texts if _START not in text]
    return [{k: v for k, v in line.items() if not k.startswith(_TIMED)} for line in lines]


def read_events(folder: Path) -> list[tuple[int, str, float]]:
    """Returns (step, tag, value) as TensorBoard reads the event files of `folder`, in order."""
    import struct

    from tensorboardX.proto.event_pb2 import Event, SessionLog

    scalars: list[tuple[int, str, float]] = []
    for path in sorted(folder.glob("*tfevents*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + size])
            at += 16 + size
            if event.session_log.status == SessionLog.START:
                scalars = [scalar for scalar in scalars if scalar[0] < event.step]
            scalars += [
                (event.step, value.tag, value.simple_value)
                for value in event.summary.value
                if not value.tag.startswith((*_TIMED, _START))
            ]
    return scalars


def compare(run: KilledRun) -> None:
    """Raises AssertionError if the killed run differs from the uninterrupted one."""
    different = _differences(run.results("whole"), run.results("killed"), "the killed run")
    if different:
        raise AssertionError(f"{len(different)} differences:\n" + "\n".join(different[:20]))


def _differences(whole: Any, killed: Any, place: str) -> list[str]:
    if isinstance(whole, dict) and isinstance(killed, dict) and whole.keys() == killed.keys():
        return [t for k in whole for t in _differences(whole[k], killed[k], f"{place}, {k}")]
    if isinstance(whole, list | tuple) and len(whole) == len(killed):
        pairs = enumerate(zip(whole, killed, strict=True))
        return [t for i, (a, b) in pairs for t in _differences(a, b, f"{place}, {i}")]
    return [] if whole == killed else [f"{place}: {whole!r:.100} and {killed!r:.100}"]


def kill_many(run: KilledRun, kills: int, report: Callable[[int], None] | None = None) -> int:
    """Kills `kills` processes, of a new run whenever one is finished; returns the number of runs.

    Each finished run is compared with the uninterrupted one. Every tenth run starts with an empty
    compilation cache, so that some processes are killed while they compile.
    """
    run.finish("first", "compiled")  # fills the cache
    run.finish("whole", "compiled")  # sets `seconds` to the duration without compilation
    runs = 0
    while sum(run.kills.values()) < kills or (run._folder / "killed").exists():
        cache = f"compiled-{runs // 10}"
        if sum(run.kills.values()) >= kills:
            run.finish("killed", cache)
        elif run.kill_once("killed", cache):
            if report:
                report(sum(run.kills.values()))
            continue
        compare(run)
        shutil.rmtree(run._folder / "killed")
        runs += 1
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    with tempfile.TemporaryDirectory() as folder:
        stores = str(Path(folder) / "stores")
        run = KilledRun(Path(folder), stores, steps=arguments.steps, seed=arguments.seed)
        start = time.monotonic()
        runs = kill_many(run, arguments.kills, lambda n: print(f"\r{n} kills", end="", flush=True))
        result = {
            "benchmark": "kill",
            "kills": sum(run.kills.values()),
            "runs_compared": runs,
            "differences": 0,  # one would have raised
            "seconds": round(time.monotonic() - start),
            "moments": dict(sorted(run.kills.items())),
        }
    print("\r" + json.dumps(result))


if __name__ == "__main__":
    main()
