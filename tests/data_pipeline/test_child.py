"""Functions in a process of their own, which dies in the place of this one."""

import os

import pytest

from configs.errors import DataError
from data_pipeline.child import Died, call


def check(argument):
    """What the child does."""
    if argument == "crash":
        os.abort()
    if argument == "memory":
        return len(bytearray(8 << 30))
    if argument == "unusable":
        raise DataError("this is unusable")
    return os.getpid(), argument


def test_results_and_errors_come_back_from_another_process():
    process, argument = call(check, ("a", 1))
    assert process != os.getpid() and argument == ("a", 1)
    with pytest.raises(DataError, match="this is unusable"):
        call(check, "unusable")


def test_a_crash_is_an_error_and_memory_is_limited():
    with pytest.raises(Died):
        call(check, "crash")
    with pytest.raises(MemoryError):
        call(check, "memory")
