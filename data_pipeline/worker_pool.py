"""Runs work in several processes; the result does not depend on their number."""

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from typing import Self, TypeVar

from configs.errors import DataError
from data_pipeline.child import bare_main
from data_pipeline.cores import usable_cores
from data_pipeline.encode import Part, encode_part
from data_pipeline.progress import BatchProgress

log = logging.getLogger(__name__)

PARTS_TO_PAY = 2  # a process takes as long to start as one part takes to encode

T = TypeVar("T")
R = TypeVar("R")


class Pool:
    """Processes that run functions of one argument; none where starting them would not pay.

    A `with` block waits at its end for the running calls, so that their parts are kept.
    """

    def __init__(self, workers: int, n_parts: int) -> None:
        """Starts up to `workers` processes (0: one for each core) for `n_parts` parts to encode."""
        self._workers = min(workers or len(usable_cores()), n_parts // PARTS_TO_PAY)
        self._pool: futures.ProcessPoolExecutor | None = None
        if self._workers > 1:  # else in this process, where a debugger works
            spawn = multiprocessing.get_context("spawn")
            self._pool = futures.ProcessPoolExecutor(self._workers, spawn, _start_worker)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def run(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[tuple[T, R]]:
        """Yields each item with its result, in the order in which they finish.

        Raises:
          DataError: from the function, or because the system killed a process.
        """
        if self._pool is None:
            for item in items:
                yield item, function(item)
            return
        try:
            with bare_main():  # submitting starts the processes
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


def encode_parts(parts: Sequence[Part], pool: Pool) -> None:
    """Encodes the parts that do not exist yet.

    Raises:
      DataError: from a part, or because the system killed a worker.
    """
    todo, n = missing(parts), len(parts)
    if done := n - len(todo):
        log.info("resuming after an interruption: %d of %d parts exist", done, n)
    total, left = (sum(part.n_documents for part in some) for some in (parts, todo))
    with BatchProgress("encoding", "documents", total, len(todo), done=total - left) as bar:
        for part, n_bytes in pool.run(encode_part, todo):
            bar.advance(part.n_documents, n_bytes)


def missing(parts: Sequence[Part]) -> list[Part]:
    """Returns the parts that do not exist yet."""
    return [part for part in parts if not part.path.exists()]


def _start_worker() -> None:
    """Leaves Ctrl-C to the parent, and ends this process when the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
