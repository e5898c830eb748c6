"""PTX text to instructions: what the compiler printed, with the lines to report, and nothing interpreted yet.

Only what the compiler of Triton prints is understood: one entry, registers declared by prefix and count, one piece of
dynamic shared memory, straight names. Inline assembly is ordinary PTX between two comments.
"""

from __future__ import annotations

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
    size = 1
    for extent in threads[1].split(","):
        size *= int(extent)
    shared = tuple(re.findall(rf"\.extern\s+\.shared\s+[^;]*?({NAME})\[\s*\];", text))

    registers: dict[str, int] = {}
    body: list[Instruction] = []
    labels: dict[str, int] = {}
    source, pending, began = "", "", 0
    first = text.count("\n", 0, head.end()) + 1
    for number, raw in enumerate(text[head.end() :].split("\n"), start=first):
        if raw.startswith("}"):
            break
        if ".loc" in raw and (place := re.search(r"\.loc\b.*//\s*(\S+?):(\d+)", raw)):
            source = f"{place[1]}:{place[2]}"
            continue
        line = re.sub(r"//.*", "", raw).strip()
        if not line or line.startswith((".loc", *SKIPPED)):
            continue
        while label := re.match(rf"({NAME}):\s*", line):
            labels[label[1]] = len(body)
            line = line[label.end() :]
        if not pending:
            line = line.lstrip("{ \t") if re.match(r"\{(?!\s*%)", line) else line  # the scope of inline assembly
            began = number
        pending = f"{pending} {line}".strip()
        while ";" in pending:
            statement, pending = (part.strip() for part in pending.split(";", 1))
            _statement(statement, began, source, registers, body)
        if pending in ("{", "}"):
            pending = ""
    if pending:
        raise SyntaxError(f"line {began}: a statement without end: {pending!r}")
    return Kernel(head[1], tuple(parameters), size, registers, tuple(body), labels, shared)


def _statement(text: str, line: int, source: str, registers: dict[str, int], body: list[Instruction]) -> None:
    text = text.lstrip("{} \t")
    if not text or text.startswith(SKIPPED):
        return
    if text.startswith(".reg"):
        kind, *names = text.removeprefix(".reg").replace(",", " ").split()
        for name in names:
            counted = re.fullmatch(rf"({NAME})<(\d+)>", name)
            for declared in [f"{counted[1]}{i}" for i in range(int(counted[2]))] if counted else [name]:
                registers[declared] = BITS[kind.removeprefix(".")]
        return
    if text.startswith("."):
        raise SyntaxError(f"line {line}: not understood: {text!r}")
    guard, negated = None, False
    if guarded := GUARDED.fullmatch(text):
        negated, guard, text = guarded[1] == "!", guarded[2], guarded[3]
    opcode, _, rest = text.partition("\t") if "\t" in text else text.partition(" ")
    body.append(Instruction(opcode.strip(), split_operands(rest.strip()), guard, negated, line, source))
