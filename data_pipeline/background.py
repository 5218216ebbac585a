"""Work in a thread that does not delay the end of the program."""

import threading
from collections.abc import Callable
from concurrent import futures
from typing import TypeVar

T = TypeVar("T")


def start(name: str, work: Callable[[], T]) -> futures.Future[T]:
    """Starts `work` in a thread called `name`; returns its future result or exception."""
    future: futures.Future[T] = futures.Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    # A daemon: an executor's thread would delay the end of a run that is stopped.
    threading.Thread(target=run, name=name, daemon=True).start()
    return future
