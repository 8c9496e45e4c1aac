"""Reads what a compiler made of a kernel: registers, shared memory, instructions and loops of NVIDIA machine code."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import triton.backends.nvidia

TOOLS = Path(triton.backends.nvidia.__file__).parent / "bin"
_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)(.*)")
_LABEL = re.compile(r"\s*(\.L_[\w.]+):")
_TARGET = re.compile(r"\((\.L_[\w.]+)\)")
_MATRIX = re.compile(r"HGMMA|IGMMA|QGMMA|HMMA|UTC\w*MMA")
_ARITHMETIC = ("FFMA", "FFMA2", "HFMA2", "FADD", "FMUL", "HADD2", "HMUL2")
_REGISTER = {"64": 8, "128": 16}


@dataclass(frozen=True, slots=True)
class Instruction:
    """One machine instruction: its address and name with modifiers ("LDG.E.128")."""

    address: int
    name: str

    @property
    def kind(self) -> str:
        return self.name.partition(".")[0]

    @property
    def is_matrix(self) -> bool:
        return _MATRIX.fullmatch(self.kind) is not None

    @property
    def is_wide_load(self) -> bool:
        return self.kind in ("LDG", "LDGSTS") and ".128" in self.name

    @property
    def bytes(self) -> int:
        """How much a load or store moves per lane."""
        return next((size for part, size in _REGISTER.items() if part in self.name.split(".")), 4)


@dataclass(frozen=True, slots=True)
class Loop:
    """The instructions from a loop's first to the branch back, those of loops inside it included."""

    body: tuple[Instruction, ...]

    def holds(self, other: Loop) -> bool:
        first, last = self.body[0].address, self.body[-1].address
        inside = first <= other.body[0].address and other.body[-1].address <= last
        return inside and len(other.body) < len(self.body)

    @property
    def is_matrix(self) -> bool:
        return any(instruction.is_matrix for instruction in self.body)

    @property
    def is_arithmetic(self) -> bool:
        return any(i.kind in _ARITHMETIC for i in self.body) and any(i.kind == "LDG" for i in self.body)

    def count(self, kind: str) -> int:
        return sum(instruction.kind == kind for instruction in self.body)


@dataclass(frozen=True, slots=True)
class Code:
    """A kernel's machine code."""

    registers: int
    instructions: tuple[Instruction, ...]
    loops: tuple[Loop, ...]

    @property
    def spilled(self) -> int:
        """Bytes per lane stored to local memory, which is where registers go that do not fit."""
        return sum(i.bytes for i in self.instructions if i.kind == "STL")

    @property
    def counts(self) -> Counter[str]:
        return Counter(instruction.kind for instruction in self.instructions)

    def matrix_loops(self) -> list[Loop]:
        """Innermost loops with a matrix product: each is one step over a block of channels, in order of address."""
        found = [loop for loop in self.loops if loop.is_matrix]
        return [loop for loop in found if not any(loop.holds(other) for other in found)]

    def around(self, loop: Loop) -> list[Loop]:
        return [other for other in self.loops if other.holds(loop)]

    def inside(self, loop: Loop) -> list[Loop]:
        return [other for other in self.loops if loop.holds(other)]


def read(cubin: bytes) -> Code:
    """Disassemble a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _output("cuobjdump", "-res-usage", file.name)
        text = _output("nvdisasm", "-c", file.name)
    found = re.search(r"REG:(\d+)", usage)
    if found is None:
        raise ValueError(f"cuobjdump names no registers:\n{usage}")
    return parsed(text, int(found[1]))


def parsed(text: str, registers: int) -> Code:
    """Return the code that nvdisasm's text shows."""
    instructions, labels = _instructions(text)
    return Code(registers, tuple(instructions), tuple(_loops(text, instructions, labels)))


def _instructions(text: str) -> tuple[list[Instruction], dict[str, int]]:
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    waiting: list[str] = []
    for line in text.splitlines():
        if label := _LABEL.match(line):
            waiting.append(label[1])
        elif found := _INSTRUCTION.search(line):
            address = int(found[1], 16)
            labels.update(dict.fromkeys(waiting, address))
            waiting.clear()
            instructions.append(Instruction(address, found[2]))
    return instructions, labels


def _loops(text: str, instructions: list[Instruction], labels: dict[str, int]) -> Iterator[Loop]:
    """Yield a loop for each address that a later branch goes back to, up to the last such branch."""
    last: dict[int, int] = {}
    for found in _INSTRUCTION.finditer(text):
        address, to = int(found[1], 16), _TARGET.search(found[3])
        # A branch to itself is where nvdisasm pads the code.
        if found[2].startswith("BRA") and to is not None and labels.get(to[1], address) < address:
            last[labels[to[1]]] = address
    for start, end in sorted(last.items()):
        yield Loop(tuple(i for i in instructions if start <= i.address <= end))


def _output(tool: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / tool, *arguments], check=True, capture_output=True, text=True).stdout
