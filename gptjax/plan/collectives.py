"""Bytes that the devices of a program exchange: the collectives in its text, or those of a plan.

A collective counts as the ring that NCCL runs (Patarasuk and Yuan 2009): of a group of k devices,
each sends (k - 1) / k of what it reduces and scatters, k - 1 times the part that it has of what is
gathered, and for an all-reduce, which is both, 2 (k - 1) / k of its operand.
"""

import functools
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from gptjax.plan.hlo import Instruction, Program

_PARTS_SENT = {  # of a device's operand, in a group of k
    "all-reduce": lambda k: 2 * (k - 1) / k,
    "reduce-scatter": lambda k: (k - 1) / k,
    "all-gather": lambda k: k - 1,
    "all-to-all": lambda k: (k - 1) / k,
    "ragged-all-to-all": lambda k: (k - 1) / k,
    "collective-permute": lambda _: 1,
    "collective-broadcast": lambda _: 1,
}
_LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{\{([\d,]+)\}")
_IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")


class Collective(NamedTuple):
    """An exchange between devices, as one of them sees it."""

    kind: str  # XLA's opcode
    dtype: str  # XLA's name
    bytes: int  # of the operand on one device, in one run
    group: Sequence[int]  # devices that exchange with each other: one group of several alike
    runs: int  # in a step
    source: str  # JAX's name of the operation that it comes from

    @property
    def wire_bytes(self) -> float:
        """Bytes that one device sends in a step."""
        return self.runs * self.bytes * _PARTS_SENT[self.kind](len(self.group))


def collectives(program: Program) -> list[Collective]:
    """Returns the collectives of one run of a program, one for each dtype of an instruction.

    Of a conditional, the branch that sends most counts. Devices are numbered in the order of the
    mesh.
    """
    found = functools.partial(_found, program)
    executed = program.executed(lambda i: sum(c.wire_bytes for c in found(i)))
    return [c._replace(runs=runs) for instruction, runs in executed for c in found(instruction)]


def sent(collectives: Iterable[Collective]) -> float:
    """Returns the bytes that one device sends in a step."""
    return sum(collective.wire_bytes for collective in collectives)


def _found(program: Program, instruction: Instruction) -> list[Collective]:
    """Returns one run of the collectives in an instruction, which may be a fusion."""
    found = []
    for inner in program.inside(instruction) or [instruction]:
        kind = inner.opcode.removesuffix("-start")
        if kind not in _PARTS_SENT:
            continue
        group, source = _group(inner, program.n_devices), program.source(instruction)
        sizes: dict[str, int] = {}
        for operand in inner.operands:
            for dtype, size in operand.sizes:
                sizes[dtype] = sizes.get(dtype, 0) + size
        found += [Collective(kind, dtype, n, group, 1, source) for dtype, n in sizes.items()]
    return [collective for collective in found if len(collective.group) > 1]


def _group(instruction: Instruction, n_devices: int) -> Sequence[int]:
    """Returns the first group of a collective; of a permutation, the first pair."""
    attributes = instruction.attributes
    if listed := _LISTED.search(attributes):
        return _numbers(listed[1])
    if iota := _IOTA.search(attributes):
        shape = _numbers(iota[3])
        order = _numbers(iota[4]) if iota[4] else range(len(shape))
        devices = np.arange(n_devices).reshape(shape).transpose(order)
        return devices.reshape(int(iota[1]), int(iota[2]))[0].tolist()
    return range(n_devices)  # no groups


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]
