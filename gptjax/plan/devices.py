"""Devices that a run can be planned for: graphics cards by name, or those of this machine."""

import dataclasses
import difflib
import os
from pathlib import Path
from typing import NamedTuple

import jax

from configs.errors import UserError

LOCAL = "local"
# The share of a card that JAX reserves when it starts; the newer name has precedence.
_MEM_FRACTION = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
_DEFAULT_MEM_FRACTION = 0.75


class Card(NamedTuple):
    """Data sheet of a graphics card."""

    device_kind: str  # of `jax.Device`
    memory_mib: int
    bandwidth_gb_s: float
    peak_tflops: float  # dense bfloat16, accumulated in float32
    compute_capability: tuple[int, int]
    n_cores: int  # streaming multiprocessors
    clock_ghz: float  # boost
    l2_mib: int


# From NVIDIA's architecture whitepapers (GeForce, at boost clock) and data sheets (without
# sparsity); memory as nvidia-smi shows it. Laptop, SUPER, Ti and PCIe versions differ by up to a
# half, so only an exact device kind matches, and a device that is not listed has no known peak.
CARDS = {
    "rtx3060-12gb": Card("NVIDIA GeForce RTX 3060", 12288, 360, 25.5, (8, 6), 28, 1.777, 3),
    "rtx3090": Card("NVIDIA GeForce RTX 3090", 24576, 936.2, 71, (8, 6), 82, 1.695, 6),
    "rtx4060ti-16gb": Card("NVIDIA GeForce RTX 4060 Ti", 16380, 288, 44.1, (8, 9), 34, 2.535, 32),
    "rtx4070": Card("NVIDIA GeForce RTX 4070", 12281, 504.048, 58.3, (8, 9), 46, 2.475, 36),
    "rtx4070s": Card("NVIDIA GeForce RTX 4070 SUPER", 12282, 504.2, 71, (8, 9), 56, 2.475, 48),
    "rtx4070ti": Card("NVIDIA GeForce RTX 4070 Ti", 12282, 504.2, 80.2, (8, 9), 60, 2.61, 48),
    "rtx4070tis": Card(
        "NVIDIA GeForce RTX 4070 Ti SUPER", 16376, 672.3, 88.2, (8, 9), 66, 2.61, 48
    ),
    "rtx4080": Card("NVIDIA GeForce RTX 4080", 16376, 716.8, 97.5, (8, 9), 76, 2.505, 64),
    "rtx4090": Card("NVIDIA GeForce RTX 4090", 24564, 1008, 165.2, (8, 9), 128, 2.52, 72),
    "a100-40gb": Card("NVIDIA A100-SXM4-40GB", 40370, 1555.2, 312, (8, 0), 108, 1.41, 40),
    "a100-80gb": Card("NVIDIA A100-SXM4-80GB", 81152, 2039, 312, (8, 0), 108, 1.41, 40),
    "h100": Card("NVIDIA H100 80GB HBM3", 81008, 3352.3, 989, (9, 0), 132, 1.83, 50),
    "h200": Card("NVIDIA H200", 143167, 4800, 989, (9, 0), 132, 1.83, 50),
}


@dataclasses.dataclass(frozen=True)
class Device:
    """The devices of a run, all of one kind."""

    name: str  # a key of CARDS, or LOCAL
    platform: str  # of JAX: gpu, cpu, ...
    kind: str
    count: int
    budget_bytes: int  # memory of each that a program can use
    budget_reason: str  # origin of that number

    @property
    def is_local(self) -> bool:
        """Whether these are the devices of this machine, not a card by name."""
        return self.name == LOCAL

    @property
    def peak_flops(self) -> float | None:
        """Peak bfloat16 FLOP/s of one device; None if unknown."""
        return peak_flops(self.kind)

    @property
    def bandwidth(self) -> float | None:
        """Memory bandwidth of one device, bytes per second; None if unknown."""
        card = _card_of_kind(self.kind)
        return None if card is None else card.bandwidth_gb_s * 1e9


def find(name: str) -> Device:
    """Returns the card of that name, or for LOCAL the devices of this machine.

    Raises:
        UserError: there is no card of that name.
    """
    if name == LOCAL:
        return local()
    if name not in CARDS:
        nearest = difflib.get_close_matches(name, CARDS, n=1)
        hint = f" (did you mean {nearest[0]}?)" if nearest else ""
        raise UserError(
            f"--target={name}: unknown card{hint}. Choose one of {', '.join(CARDS)}, or {LOCAL} "
            f"for the devices of this machine."
        )
    card, fraction = CARDS[name], _mem_fraction()
    return Device(
        name=name,
        platform="gpu",
        kind=card.device_kind,
        count=1,
        budget_bytes=int(fraction * card.memory_mib * 2**20),
        budget_reason=f"{fraction:.0%} of {card.memory_mib / 1024:.2f} GiB, which JAX takes",
    )


def local() -> Device:
    """Returns the devices of this machine; starts JAX's backend."""
    device = jax.devices()[0]
    if device.platform == "cpu":  # several CPU devices share the memory of the host
        budget = _available_host_bytes() // jax.local_device_count()
        reason = "of host memory is available"
    else:
        budget = device.memory_stats()["bytes_limit"]
        reason = "which JAX has taken of the card"
    return Device(LOCAL, device.platform, device.device_kind, jax.device_count(), budget, reason)


def peak_flops(device_kind: str) -> float | None:
    """Returns the peak bfloat16 FLOP/s of one device, or None if unknown."""
    card = _card_of_kind(device_kind)
    return None if card is None else card.peak_tflops * 1e12


def _card_of_kind(device_kind: str) -> Card | None:
    return next((card for card in CARDS.values() if card.device_kind == device_kind), None)


def _mem_fraction() -> float:
    for variable in _MEM_FRACTION:
        if text := os.environ.get(variable):
            try:
                fraction = float(text)
            except ValueError:
                fraction = 0.0
            if not 0 < fraction <= 1:
                raise UserError(f"{variable}={text}: must be a number above 0 and at most 1.")
            return fraction
    return _DEFAULT_MEM_FRACTION


def _available_host_bytes() -> int:
    """Returns the host memory available to a new program, within the limit of the cgroup."""
    meminfo, limit = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if meminfo.is_file():  # Linux
        lines = meminfo.read_text().splitlines()
        available = next(1024 * int(x.split()[1]) for x in lines if x.startswith("MemAvailable"))
    if limit.is_file() and (text := limit.read_text().strip()) != "max":
        available = min(available, int(text))
    return available
