"""Says what this machine is, what of gptjax runs on it, and how to get what is missing.

gptjax doctor

The text has no names of users and no paths of home folders: a report of a fault can have it. The
exit status is 1 where nothing can be trained, or a card is there and not used.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from configs import cli
from gptjax import __version__
from gptjax.cli import machine
from gptjax.cli.machine import Card

_JAX_SECONDS = 120  # in which JAX has found the devices, or will not
_OLDEST, _TOO_NEW = (3, 11), (3, 15)  # of Python, as in pyproject.toml
_DRIVERS = ((580, "cuda13"), (525, "cuda12"))  # the oldest driver of each CUDA
_FINEWEB_GIB = 6  # a file of it, its store, and the parts that the store is made of
# In a process of its own: JAX may be missing, die or hang, and takes no memory of a card that is
# in use.
_PROBE = """
import json, sys
sys.path[:] = sys.argv[1:]
import jax
devices = jax.devices()
result = {"version": jax.__version__, "platform": devices[0].platform}
result["kinds"] = [device.device_kind for device in devices]
try:
    from configs import base
    from gptjax.model.attention import choose
    config = base.get_config()
    result["attention"] = ["%s: %s" % choose(config)]
    config.data.document_mask = True
    result["attention"].append("with a document mask %s: %s" % choose(config))
except Exception as error:
    result["attention"] = [f"unknown ({type(error).__name__}: {error})"]
print(json.dumps(result))
"""


def probe_jax() -> dict[str, Any]:
    """Returns `version`, `platform`, `kinds` of devices and `attention`; or the `error` of JAX."""
    variables = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_CPP_MIN_LOG_LEVEL": "3"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE, *sys.path],
            capture_output=True,
            text=True,
            timeout=_JAX_SECONDS,
            env=os.environ | variables,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"it found no devices within {_JAX_SECONDS} s"}
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        how = "" if done.returncode > 0 else f"signal {-done.returncode}: "
        return {"error": f"{how}{lines[-1]}"}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def facts(cards: list[Card], jax: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields the lines of the report as (what, value)."""
    installed = "checkout" if machine.is_checkout() else "wheel"
    yield "gptjax", f"{__version__} ({installed})"
    yield "Python", sys.version.split()[0]
    yield "system", machine.operating_system()
    yield "processor", machine.processor()
    yield "memory", machine.memory()
    yield "disk", f"{machine.free_disk():.1f} GiB free where the current folder is"
    yield "driver", f"NVIDIA {cards[0].driver}" if cards else "none: nvidia-smi lists no card"
    for i, card in enumerate(cards):
        yield (
            f"card {i}",
            f"{card.name}, {card.used_mib} of {card.memory_mib} MiB in use, busy "
            f"{card.busy_percent} %, compute capability {card.compute_capability}",
        )
    if "error" in jax:
        yield "JAX", f"BROKEN: {jax['error']}"
    else:
        kinds = jax["kinds"]
        yield "JAX", f"{jax['version']}: {len(kinds)} x {kinds[0]} ({jax['platform']})"
        for text in jax["attention"]:
            yield "attention", text
    versions = []
    for name, version, locked in machine.packages():
        note = f" (locked: {locked})" if locked and version and locked != version else ""
        versions.append(f"{name} {version or 'MISSING'}{note}")
    yield "packages", ", ".join(versions) or "unknown: gptjax is not installed, only imported"
    extras = machine.extras()
    yield "extras", ", ".join(name for name, lacks in extras.items() if not lacks) or "none"
    yield "variables", ", ".join(machine.variables()) or "none"


def problems(cards: list[Card], jax: dict[str, Any]) -> Iterator[str]:
    """Yields what keeps gptjax from training here, or from using the card, and what to do."""
    if sys.platform == "win32":
        yield "gptjax does not run on native Windows. Use WSL 2: docs/install.md."
        return
    if not _OLDEST <= sys.version_info[:2] < _TOO_NEW:
        yield "gptjax needs Python 3.11 to 3.14: make setup PYTHON=python3.12"
    missing = [name for name, version, _ in machine.packages() if version is None]
    if missing or "error" in jax:
        names = f" ({', '.join(missing)} is missing)" if missing else ""
        yield f"JAX or another package does not work{names}. To install it again: {_install('')}"
    if not cards or jax.get("platform") == "gpu":
        return
    driver = int(cards[0].driver.partition(".")[0] or 0)
    extra = next((extra for oldest, extra in _DRIVERS if driver >= oldest), None)
    lacking = machine.extras()
    if extra is None:
        yield f"The driver {cards[0].driver} is too old for CUDA 12: install 525 or newer; reboot."
    elif all(lacking.get(name, [name]) for name in ("cuda12", "cuda13")):
        yield f"The card is not used: JAX has no CUDA libraries. Install them: {_install(extra)}"
    else:
        yield (
            "The card is not used, though JAX has CUDA libraries. After an update of the driver, "
            "reboot; in a container, pass the card on (docker run --gpus all); see variables above."
        )


def advice(cards: list[Card]) -> Iterator[str]:
    """Yields what is missing and can be got, and is no problem."""
    if sys.platform == "darwin":
        yield "On macOS gptjax runs on the CPU. JAX's plugin for Metal is made for older versions."
    elif not cards:
        where = "in Windows, not in WSL" if machine.is_wsl() else "if there is a card"
        yield (
            f"Without an NVIDIA driver, training is on the CPU. To get one, {where}: "
            "nvidia.com/drivers"
        )
    if machine.free_disk() < _FINEWEB_GIB:
        yield (
            f"To download and prepare a file of FineWeb takes {_FINEWEB_GIB} GiB of disk: "
            "data.cache_dir=... names another place."
        )
    for extra, lacks in machine.extras().items():
        if lacks and extra not in ("cuda12", "cuda13", "target", "clients"):
            yield f"The extra {extra} lacks {', '.join(lacks)}: {_install(extra)}"


def _install(extra: str) -> str:
    if machine.is_checkout():
        if not extra:
            return "make clean setup"
        if extra.startswith("cuda"):
            return f"make setup EXTRA={extra}"
        return f".venv/bin/pip install '.[{extra}]'"
    return f"pip install 'gptjax[{extra}]'" if extra else "pip install gptjax"


def _main(_: list[str]) -> None:
    cards, jax = machine.cards(), probe_jax()
    found = list(problems(cards, jax))
    lines = [f"{what:<10} {value}" for what, value in facts(cards, jax)]
    lines += ["", *(f"PROBLEM: {text}" for text in found)]
    lines += [f"- {text}" for text in advice(cards)]
    if not found:
        lines += ["", f"gptjax trains here, on the {jax['platform']}: gptjax train quickstart"]
    print(machine.without_names("\n".join(lines)))
    sys.exit(bool(found))


if __name__ == "__main__":
    cli.run_argv(_main)
