"""Devices that a run can be planned for: graphics cards by name, or those of this machine."""

import dataclasses
import difflib
import functools
import os
from typing import Any

import jax

from configs.errors import UserError
from gptjax.common import nvidia_smi
from gptjax.common.host_memory import available_host_bytes
from gptjax.plan.cards import CARDS, Card, Link, peaks

LOCAL = "local"
# The share of a card that JAX reserves when it starts; the newer name has precedence.
_MEM_FRACTION = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
_DEFAULT_MEM_FRACTION = 0.75
_DATA_SHEET = "of its data sheet"
_UNLIMITED = 2**50  # bytes: more than any device has
_IN_A_HOST = 8  # cards, at most, if nobody says


@dataclasses.dataclass(frozen=True)
class Device:
    """The devices of a run, all of one kind."""

    name: str  # a key of CARDS, or LOCAL
    platform: str  # of JAX: gpu, cpu, ...
    kind: str
    count: int
    budget_bytes: int  # memory of each that a program can use
    budget_reason: str  # origin of that number
    peaks: dict[str, float]  # FLOP/s of one, by the arithmetic of a matmul; {} if unknown
    peak_reason: str  # origin of these numbers
    bandwidth: float | None  # memory bandwidth of one, bytes per second; None if unknown
    link: Link | None  # between those of a host; None if unknown
    hosts: int = 1  # with `count` / `hosts` devices each

    @property
    def is_local(self) -> bool:
        """Whether these are the devices of this machine, not a card by name."""
        return self.name == LOCAL

    @property
    def peak_flops(self) -> float | None:
        """Peak bfloat16 FLOP/s of one device; None if unknown."""
        return self.peaks.get("bfloat16")


def find(name: str, count: int | None = None, hosts: int | None = None) -> Device:
    """Returns `count` cards of that name, by default 1, or for LOCAL the devices of this machine.

    The cards are in `hosts` hosts, by default with up to 8 in each.

    Raises:
        UserError: there is no card of that name, another number of local devices is asked for, or
            the hosts do not have the same number of devices.
    """
    if count is not None and count < 1:
        raise UserError(f"--devices={count}: must be positive.")
    if name == LOCAL:
        device = local()
        if count not in (None, device.count) or hosts not in (None, 1):
            flag = f"--devices={count}" if hosts in (None, 1) else f"--hosts={hosts}"
            raise UserError(
                f"{flag}: this machine has {device.count} x {device.kind}. Name a card with "
                f"--target to plan for another number."
            )
        return device
    if name not in CARDS:
        nearest = difflib.get_close_matches(name, CARDS, n=1)
        hint = f" (did you mean {nearest[0]}?)" if nearest else ""
        raise UserError(
            f"--target={name}: unknown card{hint}. Choose one of {', '.join(CARDS)}, or {LOCAL} "
            f"for the devices of this machine."
        )
    count = count or 1
    hosts = -(-count // _IN_A_HOST) if hosts is None else hosts
    if hosts < 1 or count % hosts:
        raise UserError(
            f"--devices={count} in {hosts} hosts: each host must have the same number of devices. "
            f"Set --hosts to a number that divides {count}."
        )
    card, fraction = CARDS[name], _mem_fraction()
    return Device(
        name=name,
        platform="gpu",
        kind=card.device_kind,
        count=count,
        budget_bytes=int(fraction * card.memory_mib * 2**20),
        budget_reason=f"{fraction:.0%} of {card.memory_mib / 1024:.2f} GiB, which JAX takes",
        peaks=card.peaks,
        peak_reason=_DATA_SHEET,
        bandwidth=card.bandwidth_gb_s * 1e9,
        link=card.link,
        hosts=hosts,
    )


def local() -> Device:
    """Returns the devices of this machine; starts JAX's backend."""
    device = jax.devices()[0]
    budget, budget_reason = _budget(device)
    flops, peak_reason = _peaks(device)
    card = _card_of_kind(device.device_kind)
    return Device(
        name=LOCAL,
        platform=device.platform,
        kind=device.device_kind,
        count=jax.device_count(),
        budget_bytes=budget,
        budget_reason=budget_reason,
        peaks=flops,
        peak_reason=peak_reason,
        bandwidth=None if card is None else card.bandwidth_gb_s * 1e9,
        link=None if card is None else card.link,
    )


def peak_flops(device: jax.Device) -> float | None:
    """Returns the peak bfloat16 FLOP/s of one device, or None if unknown."""
    return _peaks(device)[0].get("bfloat16")


def _budget(device: jax.Device) -> tuple[int, str]:
    if device.platform == "cpu":  # several CPU devices share the memory of the host
        budget = available_host_bytes() // jax.local_device_count()
        return budget, "of host memory is available"
    if stats := device.memory_stats():
        return stats["bytes_limit"], "which JAX has taken of the card"
    # With XLA_PYTHON_CLIENT_ALLOCATOR=platform JAX takes memory as it needs it, and counts none.
    card = _card_of_kind(device.device_kind)
    mib = _driver_value(device.device_kind, "memory.total") if card is None else card.memory_mib
    if mib is None:
        return _UNLIMITED, "neither JAX nor the driver names the memory"
    return int(mib * 2**20), "all memory of the card: JAX reserves none"


def _peaks(device: jax.Device) -> tuple[dict[str, float], str]:
    """Returns (FLOP/s by arithmetic, origin): the data sheet, or computed from the chip."""
    if (card := _card_of_kind(device.device_kind)) is not None:
        return card.peaks, _DATA_SHEET
    attributes: Any = device  # those of an NVIDIA device
    capability = getattr(attributes, "compute_capability", None)
    n_cores = getattr(attributes, "core_count", None)
    if capability is None or n_cores is None:
        return {}, "n/a: not in the table of cards, which --target takes: --target=rtx4070"
    if (clock_mhz := _driver_value(device.device_kind, "clocks.max.sm")) is None:
        return {}, "n/a: not in the table of cards, and nvidia-smi names no clock"
    major, _, minor = str(capability).partition(".")
    flops = peaks(device.device_kind, (int(major), int(minor)), n_cores, clock_mhz / 1000)
    if not flops:
        return {}, f"n/a: neither the card nor compute capability {capability} is in the table"
    return (
        flops,
        f"of {n_cores} multiprocessors at the driver's highest clock, {clock_mhz:,.0f} MHz",
    )


def _card_of_kind(device_kind: str) -> Card | None:
    return next((card for card in CARDS.values() if card.device_kind == device_kind), None)


@functools.cache  # the plan and the training log ask for the same
def _driver_value(device_kind: str, field: str) -> float | None:
    """Returns a number that nvidia-smi names for cards of this kind, or None."""
    values = {name: value for name, value in nvidia_smi.query("name", field)}  # noqa: C416  a row is a list
    try:
        return float(values[device_kind])
    except (ValueError, KeyError):
        return None  # not installed, or it says [N/A]


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
