"""Seconds, MB/s and peak memory of preparing a file, for several numbers of workers.

    python -m benchmarks.preparation --source=/tmp/fineweb.parquet --workers 1 2

Runs `python -m data_pipeline.prepare` into a fresh folder and samples its processes every fifth of
a second: VmHWM is the peak resident memory, shared pages included.
"""

import argparse
import contextlib
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import show
from data_pipeline.token_store import TokenStore

PERIOD = 0.2  # seconds between samples


def peak_mb(pid: int) -> float:
    """Returns the peak memory of a process, in 10^6 bytes."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(match[1]) * 1024 / 1e6 if match else 0.0


def descendants(pid: int) -> list[int]:
    """Returns all processes below a process."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [d for child in map(int, children) for d in (child, *descendants(child))]


def watch(command: list[str]) -> tuple[float, dict[int, float], int]:
    """Runs a command; returns its seconds, the peaks of its processes by pid, and its own pid."""
    start = time.monotonic()
    peaks: dict[int, float] = {}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            with contextlib.suppress(OSError):  # the process has ended
                for pid in (process.pid, *descendants(process.pid)):
                    peaks[pid] = max(peaks.get(pid, 0.0), peak_mb(pid))
            time.sleep(PERIOD)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with status {process.returncode}")
    return time.monotonic() - start, peaks, process.pid


def prepare(
    source: str, config: str, workers: int, options: list[str], *, out: Path, keep: bool
) -> dict[str, Any]:
    """Prepares `source` into a fresh folder below `out`; returns the figures."""
    folder = Path(tempfile.mkdtemp(prefix="store-", dir=out))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        command = [sys.executable, "-m", "data_pipeline.prepare", f"--config={config}"]
        command += [f"--config.data.source={source}", f"--config.data.cache_dir={folder}"]
        command += [f"--config.data.prepare_workers={workers}", *options]
        seconds, peaks, parent = watch(command)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        (path,) = (p.parent for p in folder.glob("*/manifest.json"))
        store = TokenStore.open(path)
        splits = store.manifest["splits"].values()
        n_bytes = sum(split["bytes"] for split in splits)
        return {
            "workers": workers,
            "seconds": seconds,
            "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
            "text_mb": n_bytes / 1e6,
            "mb_per_s": n_bytes / 1e6 / seconds,
            "parent_mb": peaks.pop(parent),
            "largest_worker_mb": max(peaks.values(), default=0.0),
            "store_mb": sum(f.stat().st_size for f in path.iterdir()) / 1e6,
            "store_hash": store.hash[:12],
        }
    finally:
        if not keep:
            shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", required=True, help="parquet file or folder")
    parser.add_argument("--config", default="configs/rtx4070.py")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, os.cpu_count() or 1])
    parser.add_argument("--keep", action="store_true", help="keep the stores")
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()))
    arguments, options = parser.parse_known_args()  # the rest: --config.* of the program
    results = [
        prepare(
            arguments.source,
            arguments.config,
            workers,
            options,
            out=arguments.out,
            keep=arguments.keep,
        )
        for workers in arguments.workers
    ]
    slowest = max(result["seconds"] for result in results)
    for result in results:
        result["speed_up"] = slowest / result["seconds"]
    show(f"preparing {arguments.source}", results)


if __name__ == "__main__":
    main()
