"""Bytes that a compiled XLA program reads and writes, counted in its text.

XLA's own cost analysis counts a loop body once and library calls not at all. Here each instruction
of the optimized program reads its operands and writes its result, in each iteration of its loop. A
fusion that slices an operand reads the slice, one that updates an array in place writes the update.
Caches are ignored.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

_ITEMSIZE = {
    **dict.fromkeys(("pred", "s8", "u8"), 1),
    **dict.fromkeys(("f16", "bf16", "s16", "u16"), 2),
    **dict.fromkeys(("f32", "s32", "u32"), 4),
    **dict.fromkeys(("f64", "s64", "u64"), 8),
}
_ARRAY = re.compile(rf"\b({'|'.join(_ITEMSIZE)})\[([\d,]*)\]")
_COMMENT = re.compile(r"/\*.*?\*/")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.-]+) = (\([^=]*?\)|\S+) ([\w-]+)\((.*)$")
_NAME = re.compile(r"%([\w.-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_FREE = {"parameter", "get-tuple-element", "tuple", "constant", "bitcast", "after-all", "iota"}
_SLICES = ("slice", "dynamic-slice", "dynamic-update-slice", "gather")


@dataclass(frozen=True)
class _Instruction:
    name: str
    size: int  # bytes of the result
    opcode: str
    operands: list[str]
    attributes: str

    def called(self, attribute: str) -> list[str]:
        match = re.search(rf"{attribute}=\{{?([^}}\s]*%[\w.-]+(?:, %[\w.-]+)*)", self.attributes)
        return _NAME.findall(match[1]) if match else []


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


def transfers(text: str) -> list[Transfer]:
    """Returns the traffic of one run of a program, given `Compiled.as_text()`.

    Of a conditional, the branch that moves most counts.
    """
    computations: dict[str, dict[str, _Instruction]] = {}
    entry = ""
    for line in _COMMENT.sub("", text).splitlines():
        if header := _COMPUTATION.match(line):
            instructions = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif match := _INSTRUCTION.match(line):
            name, type_text, opcode, rest = match.groups()
            operands = _NAME.findall(rest.partition(")")[0])
            instructions[name] = _Instruction(name, _size(type_text), opcode, operands, rest)
    if not entry:
        raise ValueError("the text is not an HLO module")
    return list(_transfers(computations, entry, 1))


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


def _transfers(
    computations: dict[str, dict[str, _Instruction]], name: str, runs: int
) -> Iterator[Transfer]:
    instructions = computations[name]
    for instruction in instructions.values():
        sizes = [instructions[operand].size for operand in instruction.operands]
        n_bytes = 0
        match instruction.opcode:
            case "while":
                trips = _TRIPS.search(instruction.attributes)
                (body,) = instruction.called("body")
                yield from _transfers(computations, body, runs * int(trips[1] if trips else 1))
            case "conditional":
                kinds = ("branch_computations", "true_computation", "false_computation")
                branches = [name for kind in kinds for name in instruction.called(kind)]
                moved = (list(_transfers(computations, branch, runs)) for branch in branches)
                yield from max(moved, key=lambda branch: sum(t.total for t in branch))
            case "call":
                (callee,) = instruction.called("to_apply")
                yield from _transfers(computations, callee, runs)
            case "fusion":
                (callee,) = instruction.called("calls")
                n_bytes = _fusion(computations[callee], instruction.size, sizes)
            case "slice" | "dynamic-slice":
                n_bytes = 2 * instruction.size
            case "dynamic-update-slice":
                n_bytes = 2 * sizes[1]
            case opcode if opcode not in _FREE:
                n_bytes = instruction.size + sum(sizes)
        if n_bytes:
            yield Transfer(instruction.name, _source(instruction, computations), runs, n_bytes)


def _source(instruction: _Instruction, computations: dict[str, dict[str, _Instruction]]) -> str:
    fused = [i for name in instruction.called("calls") for i in computations[name].values()]
    named = (_OP_NAME.search(i.attributes) for i in [instruction, *reversed(fused)])
    return next((match[1] for match in named if match), "")


def _fusion(body: dict[str, _Instruction], result_size: int, operand_sizes: list[int]) -> int:
    def uses(name: str) -> list[tuple[_Instruction, int]]:
        users = []
        for user in body.values():
            if name in user.operands:
                is_bitcast = user.opcode == "bitcast"
                users += uses(user.name) if is_bitcast else [(user, user.operands.index(name))]
        return users

    total = result_size
    for instruction in body.values():
        if instruction.opcode == "dynamic-update-slice":  # in place
            total += body[instruction.operands[1]].size - instruction.size
        if instruction.opcode != "parameter":
            continue
        used = uses(instruction.name)
        if used and all(user.opcode in _SLICES and index == 0 for user, index in used):
            total += sum(u.size for u, _ in used if u.opcode != "dynamic-update-slice")
        else:
            total += operand_sizes[int(instruction.attributes.partition(")")[0])]
    return max(total, 0)


def _size(type_text: str) -> int:
    return sum(
        _ITEMSIZE[dtype] * math.prod(int(n) for n in shape.split(",") if n)
        for dtype, shape in _ARRAY.findall(type_text)
    )
