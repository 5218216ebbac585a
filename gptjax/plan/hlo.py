"""The text of a compiled XLA program, as instructions and how often each runs."""

import functools
import math
import re
from collections.abc import Callable, Iterator
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
_PARTITIONS = re.compile(r"^HloModule .*\bnum_partitions=(\d+)", re.MULTILINE)
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.-]+) = (\([^=]*?\)|\S+) ([\w-]+)\((.*)$")
_NAME = re.compile(r"%([\w.-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_BRANCHES = ("branch_computations", "true_computation", "false_computation")


@dataclass(frozen=True, eq=False)
class Instruction:
    """An instruction, without the computations that it calls."""

    name: str
    type: str  # of the result: array types such as bf16[12,512]{1,0}, or a tuple of them
    opcode: str
    operands: list["Instruction"]
    attributes: str  # the rest of the line, from the operands on

    @functools.cached_property
    def sizes(self) -> list[tuple[str, int]]:
        """(dtype, bytes) of each array of the result."""
        return [
            (dtype, _ITEMSIZE[dtype] * math.prod(int(n) for n in shape.split(",") if n))
            for dtype, shape in _ARRAY.findall(self.type)
        ]

    @functools.cached_property
    def size(self) -> int:
        """Bytes of the result."""
        return sum(size for _, size in self.sizes)

    def called(self, attribute: str) -> list[str]:
        """Returns the names of the computations in an attribute."""
        match = re.search(rf"{attribute}=\{{?([^}}\s]*%[\w.-]+(?:, %[\w.-]+)*)", self.attributes)
        return _NAME.findall(match[1]) if match else []


class Program(NamedTuple):
    """A compiled program; each of its devices runs the same."""

    computations: dict[str, list[Instruction]]
    entry: str
    n_devices: int

    def executed(self, cost: Callable[[Instruction], float]) -> list[tuple[Instruction, int]]:
        """Returns (instruction, runs) of all that one run of the program executes.

        A fusion is one instruction. Of a conditional, the branch of most `cost` counts; a loop
        whose trips XLA does not know counts once.
        """
        return list(self._executed(self.entry, 1, cost))

    def _executed(
        self, name: str, runs: int, cost: Callable[[Instruction], float]
    ) -> Iterator[tuple[Instruction, int]]:
        for instruction in self.computations[name]:
            match instruction.opcode:
                case "while":
                    trips = _TRIPS.search(instruction.attributes)
                    (body,) = instruction.called("body")
                    yield from self._executed(body, runs * int(trips[1] if trips else 1), cost)
                case "conditional":
                    names = [name for kind in _BRANCHES for name in instruction.called(kind)]
                    branches = (list(self._executed(name, runs, cost)) for name in names)
                    yield from max(branches, key=lambda branch: sum(n * cost(i) for i, n in branch))
                case "call":
                    (callee,) = instruction.called("to_apply")
                    yield from self._executed(callee, runs, cost)
                case _:
                    yield instruction, runs

    def inside(self, instruction: Instruction) -> list[Instruction]:
        """Returns the instructions of a fusion, or of what starts asynchronously; [] of others."""
        return [i for name in instruction.called("calls") for i in self.computations[name]]

    def source(self, instruction: Instruction) -> str:
        """Returns JAX's name of the operation that it comes from; of a fusion, its last one."""
        candidates = [instruction, *reversed(self.inside(instruction))]
        named = (_OP_NAME.search(i.attributes) for i in candidates)
        return next((match[1] for match in named if match), "")


def parse(text: str) -> Program:
    """Returns a program, given `Compiled.as_text()`.

    Raises:
        ValueError: the text is not that of a program.
    """
    computations: dict[str, dict[str, Instruction]] = {}
    instructions: dict[str, Instruction] = {}
    entry = ""
    for line in _COMMENT.sub("", text).splitlines():
        if header := _COMPUTATION.match(line):
            instructions = computations[header[2]] = {}  # names are those of a computation
            entry = header[2] if header[1] else entry
        elif match := _INSTRUCTION.match(line):
            name, type_text, opcode, rest = match.groups()
            operands = [instructions[operand] for operand in _NAME.findall(rest.partition(")")[0])]
            instructions[name] = Instruction(name, type_text, opcode, operands, rest)
    if not entry:
        raise ValueError("the text is not an HLO module")
    partitions = _PARTITIONS.search(text)
    return Program(
        {name: list(body.values()) for name, body in computations.items()},
        entry,
        int(partitions[1]) if partitions else 1,
    )
