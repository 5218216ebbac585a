"""Runs work in several processes, with progress; the result does not depend on their number."""

import contextlib
import datetime
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Self, TypeVar

from tqdm import tqdm

from configs.errors import DataError
from data_pipeline.encode import Part, encode_part

log = logging.getLogger(__name__)

LOG_SECONDS = 10.0  # between lines of progress where there is no terminal
PARTS_TO_PAY = 2  # a process takes as long to start as one part takes to encode

T = TypeVar("T")
R = TypeVar("R")


class Pool:
    """Processes that run functions of one argument; none where they would not pay.

    Use it in a `with` block, whose end waits for the work in hand: finished parts are kept.
    """

    def __init__(self, workers: int, n_parts: int) -> None:
        """Takes the number of processes (0: one for each core) and of parts they will encode."""
        workers = min(workers or len(os.sched_getaffinity(0)), n_parts // PARTS_TO_PAY)
        self._workers = workers
        self._pool: futures.ProcessPoolExecutor | None = None
        if workers > 1:  # else in this process, where a debugger can step in, too
            self._pool = futures.ProcessPoolExecutor(
                workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Waits for the work in hand and ends the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def run(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[T, R]]:
        """Yields each item with its result, as they are finished.

        Raises:
          DataError: from the function, or because the system killed a process.
        """
        if self._pool is None:
            for item in items:
                yield item, function(item)
            return
        try:
            with _bare_main():  # submitting starts the processes
                pending = {self._pool.submit(function, item): item for item in items}
            for future in futures.as_completed(pending):
                yield pending.pop(future), future.result()
        except futures.process.BrokenProcessPool as e:
            raise DataError(
                "A process that encodes text was killed, most likely because the machine ran out "
                f"of memory with {self._workers} of them (up to 400 MB each). Finished parts are "
                "kept: run again with a smaller number, for example "
                "--config.data.prepare_workers=2"
            ) from e


def encode_parts(parts: Sequence[Part], *, pool: Pool, progress: bool) -> None:
    """Encodes the parts that do not exist yet.

    Raises:
      DataError: from a part, or because the system killed a worker.
    """
    todo = missing(parts)
    if len(todo) < len(parts):
        log.info(
            "going on after an interruption: %d of %d parts exist",
            len(parts) - len(todo),
            len(parts),
        )
    total = sum(part.n_documents for part in parts)
    reporter = _Progress(total, total - sum(part.n_documents for part in todo), enabled=progress)
    with contextlib.closing(reporter):
        for part, n_bytes in pool.run(encode_part, todo):
            reporter.update(part.n_documents, n_bytes)


def missing(parts: Sequence[Part]) -> list[Part]:
    """Returns the parts that do not exist yet."""
    return [part for part in parts if not part.path.exists()]


@contextlib.contextmanager
def _bare_main() -> Iterator[None]:
    """Hides the main program from new processes.

    Spawned processes import the main module. Where that is gptjax.main, each worker would import
    JAX, and reserve memory of the GPU, for nothing.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _start_worker() -> None:
    """Leaves Ctrl-C to the parent, and ends this process when the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _Progress:
    """A live bar on a terminal, a line of log now and then elsewhere."""

    def __init__(self, total: int, done: int, *, enabled: bool) -> None:
        self._total, self._done, self._skipped = total, done, done
        self._bytes = 0
        self._start = self._logged = time.monotonic()
        self._enabled = enabled
        terminal = enabled and sys.stderr.isatty()
        self._bar = (
            tqdm(total=total, initial=done, unit=" documents", unit_scale=True, desc="encoding")
            if terminal
            else None
        )

    def update(self, n_documents: int, n_bytes: int) -> None:
        """Counts a finished part."""
        self._done += n_documents
        self._bytes += n_bytes
        now = time.monotonic()
        rate = f"{self._bytes / 1e6 / max(now - self._start, 1e-9):.1f} MB/s"
        if self._bar is not None:
            self._bar.set_postfix_str(rate, refresh=False)
            self._bar.update(n_documents)
        elif self._enabled and (now - self._logged > LOG_SECONDS or self._done == self._total):
            self._logged = now
            left = (self._total - self._done) / max(self._done - self._skipped, 1)
            log.info(
                "encoded %s of %s documents (%.0f %%), %s, %s left",
                *(f"{self._done:,}", f"{self._total:,}", 100 * self._done / self._total, rate),
                datetime.timedelta(seconds=round(left * (now - self._start))),
            )

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()
