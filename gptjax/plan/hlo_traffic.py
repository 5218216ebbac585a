"""Bytes that a compiled XLA program reads and writes, counted in its text.

XLA's own cost analysis counts a loop body once and library calls not at all. Here each instruction
of the optimized program reads its operands and writes its result, in each iteration of its loop. A
fusion that slices an operand reads the slice, one that updates an array in place writes the update.
Caches are ignored.
"""

import functools
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from gptjax.plan.hlo import Instruction, Program

_FREE = {"parameter", "get-tuple-element", "tuple", "constant", "bitcast", "after-all", "iota"}
_SLICES = ("slice", "dynamic-slice", "dynamic-update-slice", "gather")


class Transfer(NamedTuple):
    """An instruction of a program and the memory traffic that it causes."""

    name: str  # in the compiled program: a fusion, a library call, ...
    source: str  # JAX's name of the operation that it comes from; of a fusion, its last one
    runs: int
    bytes: int  # read and written by one run

    @property
    def total(self) -> int:
        """Bytes of all its runs."""
        return self.runs * self.bytes


def transfers(program: Program) -> list[Transfer]:
    """Returns the traffic of one run; of a conditional, the branch that moves most counts."""
    moved = functools.partial(_moved, program)
    return [
        Transfer(instruction.name, program.source(instruction), runs, n_bytes)
        for instruction, runs in program.executed(moved)
        if (n_bytes := moved(instruction))
    ]


def largest(transfers: Iterable[Transfer], n: int) -> list[Transfer]:
    """Returns the `n` largest, most bytes first; those of equal source and size count as one.

    An unrolled loop has a copy of an instruction for each iteration.
    """
    runs: Counter[tuple[str, int]] = Counter()
    names: dict[tuple[str, int], str] = {}
    for transfer in transfers:
        key = transfer.source, transfer.bytes
        runs[key] += transfer.runs
        names.setdefault(key, transfer.name)
    grouped = [Transfer(names[key], key[0], runs[key], key[1]) for key in runs]
    return sorted(grouped, key=lambda transfer: transfer.total, reverse=True)[:n]


def _moved(program: Program, instruction: Instruction) -> int:
    """Returns the bytes that one run of an instruction reads and writes."""
    match instruction.opcode:
        case "fusion":
            return _fusion(program.inside(instruction), instruction)
        case "slice" | "dynamic-slice":
            return 2 * instruction.size
        case "dynamic-update-slice":
            return 2 * instruction.operands[1].size
        case opcode if opcode in _FREE:
            return 0
    return instruction.size + sum(operand.size for operand in instruction.operands)


def _fusion(body: list[Instruction], fusion: Instruction) -> int:
    def uses(instruction: Instruction) -> list[tuple[Instruction, int]]:
        users = []
        for user in body:
            if instruction in user.operands:
                index = user.operands.index(instruction)
                users += uses(user) if user.opcode == "bitcast" else [(user, index)]
        return users

    total = fusion.size
    for instruction in body:
        if instruction.opcode == "dynamic-update-slice":  # in place
            total += instruction.operands[1].size - instruction.size
        if instruction.opcode != "parameter":
            continue
        used = uses(instruction)
        if used and all(user.opcode in _SLICES and index == 0 for user, index in used):
            total += sum(u.size for u, _ in used if u.opcode != "dynamic-update-slice")
        else:
            total += fusion.operands[int(instruction.attributes.partition(")")[0])].size
    return max(total, 0)
