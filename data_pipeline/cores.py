"""The cores of this machine."""

import os


def usable_cores() -> list[int]:
    """Returns the numbers of the cores that this process may use; where macOS cannot say, all."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
