"""What can be known of this machine without JAX: system, memory, disk, cards, packages."""

import importlib.metadata
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data_pipeline.cores import usable_cores
from gptjax.common import nvidia_smi
from gptjax.common.host_memory import available_host_bytes

GIB = 2**30
PROJECT = "gptjax"
_LOCK = Path(__file__).parents[2] / "requirements" / "cpu.txt"  # of a checkout
_PIN = re.compile(r"^([\w.-]+)==([\w.]+)", re.MULTILINE)
_NAME = re.compile(r"([\w.-]+)(\[[\w,]+\])?")
_EXTRA = re.compile(r"""extra\s*==\s*["'](\w+)["']""")
_PLUGINS = {"jax[cuda12]": "jax-cuda12-plugin", "jax[cuda13]": "jax-cuda13-plugin"}
_VARIABLES = re.compile(r"(JAX|XLA|NCCL)_\w+|CUDA_VISIBLE_DEVICES|TF_FORCE_GPU_ALLOW_GROWTH")


class Card(NamedTuple):
    """A card as the driver names it."""

    name: str
    driver: str
    memory_mib: str
    used_mib: str
    busy_percent: str
    compute_capability: str


def cards() -> list[Card]:
    """Returns the NVIDIA cards that the driver lists."""
    fields = "name driver_version memory.total memory.used utilization.gpu compute_cap"
    return [Card(*row) for row in nvidia_smi.query(*fields.split())]


def operating_system() -> str:
    """Returns the name of the operating system, and what it runs in."""
    if sys.platform == "darwin":
        return f"macOS {platform.mac_ver()[0]}, {platform.machine()}"
    if sys.platform == "win32":
        return f"native Windows {platform.version()}, {platform.machine()}"
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        name = "Linux"
    inside = ", WSL 2" if is_wsl() else ", in a container" if _is_container() else ""
    return f"{name}{inside}, kernel {platform.release()}, {platform.machine()}"


def is_wsl() -> bool:
    """Returns whether this is Linux under Windows."""
    return "microsoft" in platform.release().lower()


def _is_container() -> bool:
    return Path("/.dockerenv").exists() or Path("/run/.containerenv").exists()


def processor() -> str:
    """Returns the processor and the cores that this process may use."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    name = match[1] if match else platform.processor() or platform.machine()
    return f"{name}, {len(usable_cores())} of {os.cpu_count()} cores"


def memory() -> str:
    """Returns the memory of the host."""
    if sys.platform == "win32":
        return "unknown"
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{total / GIB:.1f} GiB, {available_host_bytes() / GIB:.1f} available"


def free_disk() -> float:
    """Returns the GiB that are free where the current folder is."""
    return shutil.disk_usage(".").free / GIB


def packages() -> Iterator[tuple[str, str | None, str | None]]:
    """Yields (name, version installed, version locked) of what gptjax cannot do without.

    None: not installed; or this is no checkout, which has the lock.
    """
    locked = dict(_PIN.findall(_LOCK.read_text())) if _LOCK.is_file() else {}
    for requirement in _requirements():
        if not _EXTRA.search(requirement) and (match := _NAME.match(requirement)):
            name = match[1]
            yield name, _version(name), locked.get(name.lower())


def extras() -> dict[str, list[str]]:
    """Returns the packages that each extra lacks here."""
    missing: dict[str, list[str]] = {}
    for requirement in _requirements():
        name, extra = _NAME.match(requirement), _EXTRA.search(requirement)
        if name is None or extra is None or name[1] == PROJECT:
            continue
        package = _PLUGINS.get(name[0], name[1])
        lacking = missing.setdefault(extra[1], [])
        if _version(package) is None:
            lacking.append(package)
    return missing


def _requirements() -> list[str]:
    """Returns what the installed project requires; nothing where it only lies in the folder."""
    try:
        return importlib.metadata.requires(PROJECT) or []
    except importlib.metadata.PackageNotFoundError:
        return []


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def variables() -> Iterator[str]:
    """Yields the variables of the environment that change what JAX does."""
    for name in sorted(filter(_VARIABLES.fullmatch, os.environ)):
        yield f"{name}={os.environ[name]}"


def is_checkout() -> bool:
    """Returns whether gptjax is imported from a checkout, which has make."""
    return (Path(__file__).parents[2] / "Makefile").is_file()


def without_names(text: str) -> str:
    """Returns `text` without the names of users that paths of home folders hold."""
    text = text.replace(str(Path.home()), "~")
    return re.sub(r"(/home|/Users|[A-Z]:\\Users)[/\\][^/\\\s]+", "~", text)
