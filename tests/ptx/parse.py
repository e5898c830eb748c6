"""PTX text to instructions: what the compiler printed, with the lines to report, and nothing interpreted yet.

Only what the compiler of Triton prints is understood: one entry, registers declared by prefix and count, one piece of
dynamic shared memory, straight names. Inline assembly is ordinary PTX between two comments.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

BITS = {"pred": 1, "b8": 8, "u8": 8, "s8": 8, "b16": 16, "u16": 16, "s16": 16, "f16": 16, "bf16": 16}
BITS |= {f"{kind}{bits}": bits for kind in "busf" for bits in (32, 64)}

NAME = r"[A-Za-z_$%][\w$]*"
GUARDED = re.compile(rf"@(!?)({NAME})\s+(.*)", re.DOTALL)
SKIPPED = (".pragma", ".file", ".section", ".branchtargets")


class Instruction(NamedTuple):
    """One statement of the body."""

    opcode: str  # with its modifiers: "ld.global.v4.b32"
    operands: tuple[str, ...]  # as printed: "%r1", "[%rd2+16]", "{%r3, %r4}", "0f3F800000"
    guard: str | None  # the predicate under which it runs
    negated: bool  # it runs where the guard is false
    line: int  # of the PTX text, from 1
    source: str  # file:line of the kernel's Python, as .loc says

    def __str__(self) -> str:
        guard = "" if self.guard is None else f"@{'!' if self.negated else ''}{self.guard} "
        return f"PTX line {self.line}: {guard}{self.opcode} {', '.join(self.operands)} ({self.source or 'no source'})"


class Parameter(NamedTuple):
    name: str
    bits: int


class Kernel(NamedTuple):
    """One entry of a PTX text."""

    name: str
    parameters: tuple[Parameter, ...]
    threads: int  # of a program, from .reqntid
    registers: dict[str, int]  # name -> bits
    body: tuple[Instruction, ...]
    labels: dict[str, int]  # name -> place in the body
    shared: tuple[str, ...]  # names of dynamic shared memory: all are its start


def split_operands(text: str) -> tuple[str, ...]:
    """At the commas outside braces and brackets."""
    parts, depth, start = [], 0, 0
    for place, letter in enumerate(text):
        depth += (letter in "{[(") - (letter in "}])")
        if letter == "," and depth == 0:
            parts.append(text[start:place].strip())
            start = place + 1
    parts.append(text[start:].strip())
    return tuple(part for part in parts if part)


def members(operand: str) -> list[str]:
    """The registers of ``{a, b}``; of a plain operand itself."""
    return [m.strip() for m in operand[1:-1].split(",")] if operand.startswith("{") else [operand]


def address(operand: str) -> tuple[str, int]:
    """Base and byte offset of ``[base+offset]``."""
    match = re.fullmatch(rf"\[\s*({NAME}|\d+)\s*(?:\+\s*(-?\w+))?\s*\]", operand)
    if match is None:
        raise SyntaxError(f"expected an address [base+offset], got {operand!r}")
    return match[1], int(match[2] or "0", 0)


def parse(text: str) -> Kernel:
    """The one kernel of a PTX text."""
    head = re.search(rf"\.visible\s+\.entry\s+({NAME})\s*\((.*?)\)(.*?)\n\{{", text, re.DOTALL)
    if head is None:
        raise SyntaxError("no .visible .entry")
    parameters = []
    for declaration in split_operands(re.sub(r"//.*", "", head[2])):
        words = declaration.split()
        parameters.append(Parameter(words[-1], BITS[words[1].removeprefix(".")]))
    threads = re.search(r"\.reqntid\s+([\d, ]+)", head[3])
    if threads is None:
        raise SyntaxError("no .reqntid: how many threads a program has is not known")
    size = math.prod(int(extent) for extent in threads[1].split(","))
    shared = tuple(re.findall(rf"\.extern\s+\.shared\s+[^;]*?({NAME})\[\s*\];", text))

    reader = _Reader()
    first = text.count("\n", 0, head.end()) + 1
    for number, raw in enumerate(text[head.end() :].split("\n"), start=first):
        if raw.startswith("}") and not reader.scopes:
            break
        reader.line(number, raw)
    if reader.pending:
        raise SyntaxError(f"line {reader.began}: a statement without end: {reader.pending!r}")
    return Kernel(head[1], tuple(parameters), size, reader.registers, tuple(reader.body), reader.labels, shared)


class _Reader:
    """The body line by line; registers that a block of inline assembly declares get names of their own."""

    def __init__(self) -> None:
        self.registers: dict[str, int] = {}
        self.body: list[Instruction] = []
        self.labels: dict[str, int] = {}
        self.source, self.pending, self.began = "", "", 0
        self.scopes: list[dict[str, str]] = []  # innermost last: the name in the text -> in the kernel
        self.blocks = 0

    def line(self, number: int, raw: str) -> None:
        if ".loc" in raw and (place := re.search(r"\.loc\b.*//\s*(\S+?):(\d+)", raw)):
            self.source = f"{place[1]}:{place[2]}"
            return
        line = re.sub(r"//.*", "", raw).strip()
        if not line or line.startswith((".loc", *SKIPPED)):
            return
        while label := re.match(rf"({NAME}):\s*", line):
            self.labels[label[1]] = len(self.body)
            line = line[label.end() :]
        if not self.pending:
            self.began = number
        self.pending = f"{self.pending} {line}".strip()
        self._braces()
        while ";" in self.pending:
            statement, self.pending = (part.strip() for part in self.pending.split(";", 1))
            self._statement(statement)
            self._braces()

    def _braces(self) -> None:
        """Braces at the start of a statement open or close a scope; those of operands come after an opcode."""
        while self.pending[:1] in ("{", "}"):
            if self.pending[0] == "{":
                self.scopes.append({})
                self.blocks += 1
            else:
                self.scopes.pop()
            self.pending = self.pending[1:].strip()

    def _statement(self, text: str) -> None:
        if not text or text.startswith(SKIPPED):
            return
        if text.startswith(".reg"):
            kind, *names = text.removeprefix(".reg").replace(",", " ").split()
            for name in names:
                counted = re.fullmatch(rf"({NAME})<(\d+)>", name)
                for declared in [f"{counted[1]}{i}" for i in range(int(counted[2]))] if counted else [name]:
                    own = f"{declared}${self.blocks}" if self.scopes else declared
                    if self.scopes:
                        self.scopes[-1][declared] = own
                    self.registers[own] = BITS[kind.removeprefix(".")]
            return
        if text.startswith("."):
            raise SyntaxError(f"line {self.began}: not understood: {text!r}")
        guard, negated = None, False
        if guarded := GUARDED.fullmatch(text):
            negated, guard, text = guarded[1] == "!", guarded[2], guarded[3]
        opcode, _, rest = text.partition("\t") if "\t" in text else text.partition(" ")
        for scope in reversed(self.scopes):
            if scope:
                rest = re.sub(NAME, lambda found, scope=scope: scope.get(found[0], found[0]), rest)
                guard = None if guard is None else scope.get(guard, guard)
        operands = split_operands(rest.strip())
        self.body.append(Instruction(opcode.strip(), operands, guard, negated, self.began, self.source))
