"""The memory of this machine."""

import os
from pathlib import Path


def available_host_bytes() -> int:
    """Returns the host memory available to a new program, within the limit of the cgroup."""
    meminfo, limit = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if meminfo.is_file():  # Linux
        lines = meminfo.read_text().splitlines()
        available = next(1024 * int(x.split()[1]) for x in lines if x.startswith("MemAvailable"))
    if limit.is_file() and (text := limit.read_text().strip()) != "max":
        available = min(available, int(text))
    return available
