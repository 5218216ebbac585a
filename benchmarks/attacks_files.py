"""Opens hostile files of each kind, each in a process of its own, and counts what happens.

    python -m benchmarks.attacks_files --cases=300

A case is a good file (or folder) that was changed: by hand (benchmarks/hostile/), or by a
mutation that is drawn with a seed. The process opens it as the commands do. It must be refused with
a paragraph, or accepted and right, which is checked in another way than the program reads; a
traceback, an abort (also for want of memory, of which a case has 5 GiB), a hang (60 s) or a wrong
result is a failure.
"""

import argparse
import collections
import functools
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.hostile import data, models, runs
from benchmarks.hostile.changes import Kind, seal
from benchmarks.hostile.mutations import bytes_changed, json_changed
from benchmarks.hostile.sources import Sources
from configs import cli

KINDS = {
    "workdir": runs.WORKDIR,
    "checkpoint": runs.CHECKPOINT,
    "store": data.STORE,
    "safetensors": models.SAFETENSORS,
    "tokenizer": models.TOKENIZER,
    "parquet": data.PARQUET,
    "eval": data.EVAL,
    "metrics": runs.METRICS,
}
OUTCOMES = ("refused", "right", "traceback", "abort", "hang", "wrong")
_BY_STATUS = {0: "right", 1: "refused", 3: "wrong", 4: "traceback"}
_MEMORY = 5 << 30  # bytes
_SECONDS = 60.0
_USED = "HOSTILE FILE USED"  # printed between use and check


class Case(NamedTuple):
    """A changed copy of a good folder."""

    kind: str
    name: str
    make: Callable[[Path], object]


class Result(NamedTuple):
    """What became of a case."""

    outcome: str
    peak: int  # bytes resident
    seconds: float
    words: str  # the end of what was printed


def cases(name: str, kind: Kind, n: int, seed: int) -> Iterator[Case]:
    """Yields those made by hand, then mutations up to `n` in all."""
    for title, make in kind.by_hand.items():
        yield Case(name, title, make)
    for i in range(len(kind.by_hand), n):
        yield Case(name, f"mutation {i}", _mutation(kind, random.Random(f"{seed} {name} {i}")))


def _mutation(kind: Kind, rng: random.Random) -> Callable[[Path], object]:
    def make(folder: Path) -> str:
        files = sorted(p for p in folder.glob(kind.targets) if p.is_file() and p.stat().st_size)
        path = rng.choice(files)
        done, content = "", path.read_bytes()
        is_json = path.suffix in (".json", ".jsonl") or path.name in (".zarray", "metadata")
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            change = json_changed if is_json and rng.random() < 0.7 else bytes_changed
            start, end = 0, len(content)
            if path.suffix == ".jsonl":  # of a line
                start = content.rfind(b"\n", 0, rng.randrange(max(1, end - 1))) + 1
                end = content.find(b"\n", start) % (end + 1)
            try:
                what, changed = change(content[start:end], rng)
            except ValueError:  # no JSON any more
                continue
            done += f"{path.name}: {what}; "
            content = content[:start] + changed + content[end:]
        path.write_bytes(content)
        if rng.random() < 0.7:
            seal(path)
        return done

    return make


class Runner:
    """Runs cases in forked processes, several at a time."""

    def __init__(self, sources: Sources, folder: Path, jobs: int) -> None:
        self._sources, self._folder, self._jobs = sources, folder, jobs
        self._running: dict[int, tuple[Case, float, Path]] = {}
        self._clock = self._seen = 0.0  # the clock stands still while this process is stopped
        self.results: dict[str, list[tuple[Case, Result]]] = collections.defaultdict(list)

    def run(self, all_cases: Sequence[Case]) -> None:
        """Runs the cases, and keeps their results by kind."""
        for i, case in enumerate(all_cases):
            while len(self._running) >= self._jobs:
                self._collect()
            folder = self._folder / f"case-{i}"
            folder.mkdir()
            with (folder / "log").open("wb") as log:
                if (maker := os.fork()) == 0:  # its memory does not count
                    self._child(log.fileno(), functools.partial(self._make, case, folder))
                os.waitpid(maker, 0)
                if (pid := os.fork()) == 0:
                    self._child(log.fileno(), functools.partial(self._use, case, folder))
            self._running[pid] = case, self._now(), folder
        while self._running:
            self._collect()

    def _now(self) -> float:
        now = time.monotonic()
        self._clock += min(now - self._seen, 1.0)
        self._seen = now
        return self._clock

    def _make(self, case: Case, folder: Path) -> int:
        good = KINDS[case.kind].good(self._sources)
        work = shutil.copytree(good, folder / good.name, symlinks=True)
        print(case.name, case.make(work), flush=True)
        return 0

    def _use(self, case: Case, folder: Path) -> int:
        kind = KINDS[case.kind]
        work = folder / kind.good(self._sources).name
        resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
        results: list[Any] = []
        cli.call(lambda: results.append(kind.use(work, self._sources)))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        print(_USED, peak, flush=True)
        try:
            return 0 if kind.right(work, self._sources, results[0]) else 3
        except Exception:
            traceback.print_exc()
            return 3

    def _child(self, log: int, work: Callable[[], int]) -> None:
        status = 4
        try:
            os.setsid()
            os.dup2(log, 1)
            os.dup2(log, 2)
            sys.stdout = os.fdopen(1, "w", closefd=False)
            sys.stderr = os.fdopen(2, "w", closefd=False)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            status = work()
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 4
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _collect(self) -> None:
        while True:
            for pid, (case, start, folder) in self._running.items():
                done, status, usage = os.wait4(pid, os.WNOHANG)
                seconds = self._now() - start
                if not done and seconds < _SECONDS:
                    continue
                if not done:
                    os.killpg(pid, signal.SIGKILL)
                    _, _, usage = os.wait4(pid, 0)
                words = (folder / "log").read_text(errors="replace")
                code = os.waitstatus_to_exitcode(status) if done else None
                outcome = "hang" if code is None else _BY_STATUS.get(code, "abort")
                if _USED in words and outcome in ("abort", "hang"):
                    outcome = "right"  # it was the other way of reading that died
                if outcome == "refused" and "\nerror: " not in words:
                    outcome = "traceback"
                used = re.search(rf"{_USED} (\d+)", words)  # what the check needs does not count
                peak = int(used[1]) if used else usage.ru_maxrss << 10
                result = Result(outcome, peak, seconds, words)
                self.results[case.kind].append((case, result))
                shutil.rmtree(folder, ignore_errors=True)
                del self._running[pid]
                return
            time.sleep(0.005)


def report(results: dict[str, list[tuple[Case, Result]]], shown: int) -> int:
    """Prints the failures and a table; returns the number of failures."""
    failures = 0
    for kind, pairs in results.items():
        bad = [(c, r) for c, r in pairs if r.outcome not in ("refused", "right")]
        failures += len(bad)
        for _, result in bad[:shown]:
            lines = [x for x in result.words.splitlines() if x.strip() and _USED not in x]
            done = lines[0][:120] if lines else ""
            print(f"{kind}: {result.outcome}: {done} -> {lines[-1][:160] if lines else ''}")
    columns = [*OUTCOMES, "seconds", "peak MB", "of"]
    print("| kind | cases | " + " | ".join(columns) + " |\n|" + " --- |" * (len(columns) + 2))
    for kind, pairs in results.items():
        counts = collections.Counter(r.outcome for _, r in pairs)
        worst, most = max(pairs, key=lambda pair: pair[1].peak)
        cells = [str(counts[o]) for o in OUTCOMES]
        cells += [f"{sum(r.seconds for _, r in pairs):.0f}", f"{most.peak / 1e6:,.0f}", worst.name]
        print(f"| {kind} | {len(pairs)} | " + " | ".join(cells) + " |")
    return failures


def main() -> None:
    """Runs the cases of all kinds, or of those named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=300, help="of each kind, at least")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--shown", type=int, default=10, help="failures of each kind, in words")
    parser.add_argument("--only", default="", help="run the cases whose name contains this")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="attacks-") as name:
        folder = Path(name)
        pid = os.fork()  # JAX's threads do not survive a fork: the parent starts none
        if pid == 0:
            Sources(folder / "good").make()
            os._exit(0)
        if os.waitpid(pid, 0)[1]:
            sys.exit("the good files could not be made")
        runner = Runner(Sources(folder / "good"), folder, arguments.jobs)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        for kind in arguments.kinds:
            chosen = list(cases(kind, KINDS[kind], arguments.cases, arguments.seed))
            runner.run([case for case in chosen if arguments.only in case.name])
            print(f"{kind}: {len(runner.results[kind])} cases", file=sys.stderr, flush=True)
        failures = report(runner.results, arguments.shown)
        print(f"{failures} failures; a process has {before / 1e6:,.0f} MB when it is forked")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
