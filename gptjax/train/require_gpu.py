"""Refuses to train on the CPU where a GPU was expected, with what is known of the GPU."""

import importlib.util
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
from ml_collections import ConfigDict

from configs.errors import UserError

_log = logging.getLogger(__name__)

_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")
_DRIVER = Path("/proc/driver/nvidia/version")  # exists while the kernel's driver is loaded
_VARIABLES = ("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES")  # can hide a GPU


def require_gpu(config: ConfigDict) -> None:
    """Starts JAX's backend, and accepts the CPU with `allow_cpu` or where nothing asks for a GPU.

    Raises UserError if JAX has a CUDA plugin, or `model.compute_dtype` is bfloat16, and no GPU.
    """
    try:
        platform = jax.devices()[0].platform
    except RuntimeError as error:  # of a GPU that is there and does not work
        if not config.allow_cpu:
            raise UserError(_refusal("JAX cannot use the GPU", str(error))) from error
        _log.warning("Training on the CPU, for JAX cannot use the GPU: %s", error)
        jax.config.update("jax_platforms", "cpu")
        return
    if config.allow_cpu or platform != "cpu":
        return
    expected = [f"{name} is installed" for name in _PLUGINS if importlib.util.find_spec(name)]
    if config.model.compute_dtype == "bfloat16":
        expected.append("model.compute_dtype = bfloat16")
    if expected:
        raise UserError(_refusal(f"JAX found no GPU, but {' and '.join(expected)}", _jaxs_reason()))


def _jaxs_reason() -> str:
    try:
        return str(jax.devices("cuda"))
    except RuntimeError as error:
        return str(error)


def _refusal(problem: str, reason: str) -> str:
    return (
        f"{problem}: on the CPU, steps can take hundreds of times as long.\n  - "
        + "\n  - ".join([f"JAX: {reason}", *_state_of_driver()])
        + "\nSee whether nvidia-smi lists the card (after an update of the driver: reboot; in a "
        "container: pass the GPU on), or train on the CPU with --config.allow_cpu=True."
    )


def _state_of_driver() -> Iterator[str]:
    if not any(map(importlib.util.find_spec, _PLUGINS)):
        yield "CUDA: JAX has none here; with a card, `gptjax doctor` says which to install, and how"
    try:
        yield f"driver: {_DRIVER.read_text().splitlines()[0]}"
    except (OSError, IndexError):
        yield f"driver: not loaded ({_DRIVER} does not exist)"
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        yield "devices: there is no /dev/nvidia0"
    if shutil.which("nvidia-smi") is None:
        yield "nvidia-smi: not on the PATH"
    for name in _VARIABLES:
        if name in os.environ:
            yield f"environment: {name}={os.environ[name]}"
