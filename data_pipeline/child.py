"""Runs a function in a process of its own, which may die in the place of this one."""

import contextlib
import multiprocessing
import os
import resource
import sys
import types
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_LIMITS = (
    (resource.RLIMIT_AS, 4 << 30),  # bytes of address space, of which libraries take half a GB
    (resource.RLIMIT_CPU, 60),  # seconds
    (resource.RLIMIT_CORE, 0),
)


class Died(Exception):
    """The process ended without a result: it crashed, or needed too much memory or time."""


def call(function: Callable[[T], R], argument: T) -> R:
    """Returns `function(argument)`, or raises what it raises; 0.3 s.

    `function` belongs to a module, which the new process imports.

    Raises:
      Died: the process died.
    """
    spawn = multiprocessing.get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_run, args=(sender, function, argument))
    with bare_main():
        process.start()
    sender.close()  # so that the child's is the last one
    try:
        result: R
        result, error = receiver.recv()
    except EOFError:
        raise Died from None
    finally:
        process.join()
    if error is not None:
        raise error
    return result


def _run(sender: Connection, function: Callable[[Any], Any], argument: Any) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # C++ prints its last words there
    for limit, value in _LIMITS:
        resource.setrlimit(limit, (value, value))
    try:
        result = function(argument)
    except Exception as error:
        sender.send((None, error))
    else:
        sender.send((result, None))


@contextlib.contextmanager
def bare_main() -> Iterator[None]:
    """Hides the main module, which spawned processes import.

    With gptjax.main, each would import JAX and reserve memory of the GPU for nothing.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
