"""Bytes that a compiled XLA program reads and writes, by its text.

XLA's own cost analysis counts the body of a loop once and calls of libraries not at all. Here each
instruction of the optimized program reads its operands and writes its result, a loop as often as it
turns. A fusion that takes a slice of an operand reads the slice, one that updates an array in place
writes the update. What stays in a cache between two instructions is counted all the same.
"""

import math
import re
from dataclasses import dataclass

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
_FREE = {"parameter", "get-tuple-element", "tuple", "constant", "bitcast", "after-all", "iota"}
_SLICES = ("dynamic-slice", "dynamic-update-slice", "gather")


@dataclass(frozen=True)
class _Instruction:
    name: str
    size: int  # bytes of the result
    opcode: str
    operands: list[str]
    attributes: str

    def called(self, attribute: str) -> list[str]:
        found = re.search(rf"{attribute}=\{{?([^}}\s]*%[\w.-]+(?:, %[\w.-]+)*)", self.attributes)
        return _NAME.findall(found[1]) if found else []


def bytes_moved(text: str) -> int:
    """Returns the bytes of one run of the program `text`, as `Compiled.as_text()` gives it.

    Of a conditional, the branch that moves least counts: of gradient accumulation, all micro-steps
    but the last.
    """
    computations: dict[str, dict[str, _Instruction]] = {}
    entry = ""
    for line in _COMMENT.sub("", text).splitlines():
        if header := _COMPUTATION.match(line):
            instructions = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif match := _INSTRUCTION.match(line):
            name, type_text, opcode, rest = match.groups()
            operands, _, attributes = rest.partition(")")
            instructions[name] = _Instruction(
                name, _size(type_text), opcode, _NAME.findall(operands), rest
            )
    if not entry:
        raise ValueError("this is not the text of an HLO module")
    return _traffic(computations, entry)


def _traffic(computations: dict[str, dict[str, _Instruction]], name: str) -> int:
    total = 0
    instructions = computations[name]
    for instruction in instructions.values():
        sizes = [instructions[operand].size for operand in instruction.operands]
        match instruction.opcode:
            case opcode if opcode in _FREE:
                continue
            case "while":
                trips = _TRIPS.search(instruction.attributes)
                (body,) = instruction.called("body")
                total += (int(trips[1]) if trips else 1) * _traffic(computations, body)
            case "conditional":
                branches = instruction.called("branch_computations")
                branches += instruction.called("true_computation")
                branches += instruction.called("false_computation")
                total += min(_traffic(computations, branch) for branch in branches)
            case "call":
                (callee,) = instruction.called("to_apply")
                total += _traffic(computations, callee)
            case "fusion":
                (callee,) = instruction.called("calls")
                total += _fusion(computations[callee], instruction.size, sizes)
            case "dynamic-slice":
                total += 2 * instruction.size
            case "dynamic-update-slice":
                total += 2 * sizes[1]
            case _:
                total += instruction.size + sum(sizes)
    return total


def _fusion(body: dict[str, _Instruction], result_size: int, operand_sizes: list[int]) -> int:
    def uses(name: str) -> list[tuple[_Instruction, int]]:
        found = []
        for user in body.values():
            if name in user.operands:
                through = user.opcode == "bitcast"
                found += uses(user.name) if through else [(user, user.operands.index(name))]
        return found

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
