"""A kernel as Python functions, one for each basic block, that work on all threads of several programs at once.

A register is an array with an element for each thread, or with a single one where all have the same. Threads follow
one path until a branch parts them; then each part waits at its block, the earliest block runs first, and parts that
meet in a block run together again. Blocks exist twice, for all threads and for some of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from . import arithmetic
from .instructions import Operands, UnknownInstruction, dtype_of, value
from .parse import BITS, Instruction, Kernel, members, parse

Block = Callable[[Any, list[Any], Any], None]  # of the machine, its registers and the mask


class End(NamedTuple):
    """End of a block: the targets of threads whose guard holds and of the others. None: these threads are done."""

    guard: int | None  # register; None: all
    negated: bool
    taken: int | None
    other: int | None


class Program(NamedTuple):
    kernel: Kernel
    whole: Blocks  # for all threads
    partial: Blocks  # under a mask
    ends: list[End]
    granule: int  # bytes of the smallest access to shared memory: what races are kept for


SYNC = ("bar", "barrier")
MEMORY = ("ld", "st", "cp", "ldmatrix", "stmatrix", "mma", "wgmma", "fence", "shfl", "redux", "vote", *SYNC)


class Translator:
    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.operands = Operands(kernel)

    # One instruction

    def lines(self, number: int, masked: bool) -> list[str]:
        """Statements of one instruction; P is where it runs, if not everywhere."""
        i = self.kernel.body[number]
        where = None
        lines = []
        if i.guard is not None:
            guard = f"{'~' if i.negated else ''}R[{self.operands.places[i.guard]}]"
            lines.append(f"P = {guard} & M" if masked else f"P = {guard}")
            where = "P"
        elif masked:
            where = "M"
        name = i.opcode.split(".")[0]
        try:
            if name in MEMORY or i.opcode.startswith("ld.param"):
                return lines + getattr(self, f"_{name}")(number, i, where)
            if name == "mov":
                return lines + self._mov(i, where)
            return [*lines, self.write(i.operands[0], value(self.operands, i), i.opcode.split("."), where)]
        except (AttributeError, SyntaxError, KeyError, IndexError) as error:
            raise UnknownInstruction(f"{i}: {type(error).__name__} {error}") from error

    def assign(self, destination: str, text: str, where: str | None) -> str:
        """Bits into a register."""
        if destination == "_":
            return "pass"
        target = f"R[{self.operands.places[destination]}]"
        return f"{target} = {text}" if where is None else f"{target} = where({where}, {text}, {target})"

    def write(self, destination: str, text: str, mods: list[str], where: str | None) -> str:
        """A typed value into a register."""
        bits = self.kernel.registers[destination]
        if bits != 1 and mods[0] not in ("popc", "clz"):
            text = f"{text}.view(u{bits})"
        return self.assign(destination, text, where)

    def _mov(self, i: Instruction, where: str | None) -> list[str]:
        kind = i.opcode.split(".")[1]
        target, source = i.operands
        if target.startswith("{"):
            parts = members(target)
            bits = BITS[kind] // len(parts)
            lines = [f"T = {self.operands.read(source, kind)}"]
            for place, part in enumerate(parts):
                shifted = f"(T >> {self.operands.constant(f'u{BITS[kind]}', place * bits)}).astype(u{bits})"
                lines.append(self.assign(part, shifted, where))
            return lines
        if source.startswith("{"):
            parts = members(source)
            bits, wide = BITS[kind] // len(parts), f"u{BITS[kind]}"
            joined = [
                f"({self.operands.read(part, f'b{bits}')}.astype({wide}) << {self.operands.constant(wide, p * bits)})"
                for p, part in enumerate(parts)
            ]
            return [self.assign(target, " | ".join(joined), where)]
        return [
            self.assign(target, self.operands.read(source, kind.replace("f", "b") if kind[0] == "f" else kind), where)
        ]

    def _loaded(self, i: Instruction, kind: str, where: str | None) -> list[str]:
        """Elements T[0], T[1].. of ``kind`` into the destinations, extended to their width."""
        lines = []
        for place, target in enumerate(members(i.operands[0])):
            text, bits = f"T[{place}]", self.kernel.registers.get(target, BITS[kind])
            if bits > BITS[kind]:
                signed = kind[0] == "s"
                text = (
                    f"{text}.view({dtype_of(kind)}).astype(i{bits}).view(u{bits})"
                    if signed
                    else f"{text}.astype(u{bits})"
                )
            lines.append(self.assign(target, text, where))
        return lines

    def _ld(self, number: int, i: Instruction, where: str | None) -> list[str]:
        _, space, *flags, kind = i.opcode.split(".")
        if space == "param":
            name = i.operands[1].strip("[] ")
            place = [p.name for p in self.kernel.parameters].index(name)
            return [f"T = [m.parameters[{place}]]", *self._loaded(i, kind, where)]
        count = len(members(i.operands[0]))
        if [f for f in flags if f not in ("v2", "v4", "v8", "nc")] or space not in ("global", "shared"):
            raise UnknownInstruction(str(i))
        at = self.operands.address(i.operands[1], space == "shared")
        call = f"T = m.load_{space}({number}, {at}, u{BITS[kind]}, {count}, {where})"
        return [call, *self._loaded(i, kind, where)]

    def _st(self, number: int, i: Instruction, where: str | None) -> list[str]:
        _, space, *flags, kind = i.opcode.split(".")
        if [f for f in flags if f not in ("v2", "v4", "v8")] or space not in ("global", "shared"):
            raise UnknownInstruction(str(i))
        at = self.operands.address(i.operands[0], space == "shared")
        values = ", ".join(self.operands.read(x, f"b{BITS[kind]}") for x in members(i.operands[1]))
        return [f"m.store_{space}({number}, {at}, ({values},), {where})"]

    def _cp(self, number: int, i: Instruction, where: str | None) -> list[str]:
        if i.opcode == "cp.async.commit_group":
            return [f"m.copies.commit({where})"]
        if i.opcode == "cp.async.wait_group":
            return [f"m.copies.wait({number}, {int(i.operands[0], 0)}, {where})"]
        if i.opcode == "cp.async.wait_all":
            return [f"m.copies.commit({where})", f"m.copies.wait({number}, 0, {where})"]
        if not i.opcode.startswith(("cp.async.cg.shared.global", "cp.async.ca.shared.global")):
            raise UnknownInstruction(str(i))
        to, at = self.operands.address(i.operands[0], True), self.operands.address(i.operands[1], False)
        size = int(i.operands[2], 0)
        given = self.operands.read(i.operands[3], "u32") if len(i.operands) > 3 else self.operands.constant("u32", size)
        return [f"m.copies.start({number}, {to}, {at}, {size}, {given}, {where})"]

    def _bar(self, number: int, i: Instruction, where: str | None) -> list[str]:
        if i.opcode == "bar.warp.sync":
            return [f"m.sync_warp({number}, {where})"]
        if i.opcode in ("bar.sync", "barrier.sync", "barrier.sync.aligned") and i.operands == ("0",):
            return [f"m.barrier({number}, {where})"]
        raise UnknownInstruction(str(i))

    _barrier = _bar

    def _ldmatrix(self, number: int, i: Instruction, where: str | None) -> list[str]:
        mods = i.opcode.split(".")
        if mods[1:4] != ["sync", "aligned", "m8n8"] or mods[-2:] not in (["shared", "b16"],):
            raise UnknownInstruction(str(i))
        at, count = self.operands.address(i.operands[1], True), int(mods[4][1:])
        return [
            f"T = m.load_matrix({number}, {at}, {count}, {'trans' in mods}, {where})",
            *self._loaded(i, "b32", where),
        ]

    def _stmatrix(self, number: int, i: Instruction, where: str | None) -> list[str]:
        mods = i.opcode.split(".")
        if mods[1:4] != ["sync", "aligned", "m8n8"] or mods[-2:] != ["shared", "b16"]:
            raise UnknownInstruction(str(i))
        at = self.operands.address(i.operands[0], True)
        values = ", ".join(self.operands.read(x, "b32") for x in members(i.operands[1]))
        return [f"m.store_matrix({number}, {at}, ({values},), {'trans' in mods}, {where})"]

    def _fence(self, number: int, i: Instruction, where: str | None) -> list[str]:
        if i.opcode != "fence.proxy.async.shared::cta":
            raise UnknownInstruction(str(i))
        return [f"m.shared.fence(m.active({where}))"]

    def _wgmma(self, number: int, i: Instruction, where: str | None) -> list[str]:
        mods, o = i.opcode.split("."), i.operands
        if mods[1] == "fence":
            return ["pass"]
        if mods[1] == "commit_group":
            return [f"m.warpgroups.commit({number}, {where})"]
        if mods[1] == "wait_group":
            return [f"m.warpgroups.wait({number}, {int(o[0], 0)}, {where})"]
        if mods[1] != "mma_async" or mods[5] != "f32" or o[4:6] != ("1", "1"):
            raise UnknownInstruction(str(i))
        inside = o[1].startswith("{")
        d = f"[{', '.join(self.operands.read(x, 'b32') for x in members(o[0]))}]"
        a = (
            f"[{', '.join(self.operands.read(x, 'b32') for x in members(o[1]))}]"
            if inside
            else self.operands.read(o[1], "b64")
        )
        b, add = self.operands.read(o[2], "b64"), self.operands.read(o[3], "pred")
        across = [x == "1" for x in o[6:]]
        across = (False, *across) if inside and across else tuple(across) or (False, False)
        call = f"T = m.warpgroups.multiply({number}, {mods[4]!r}, {mods[6]!r}, {d}, {a}, {b}, {add}, {across}, {where})"
        return [call, *self._loaded(i, "b32", where)]

    def _mma(self, number: int, i: Instruction, where: str | None) -> list[str]:
        mods = i.opcode.split(".")
        if mods[1:3] != ["sync", "aligned"] or mods[4:7] != ["row", "col", "f32"] or mods[-1] != "f32":
            raise UnknownInstruction(str(i))
        a, b, c = (f"[{', '.join(self.operands.read(x, 'b32') for x in members(o))}]" for o in i.operands[1:4])
        return [
            f"T = m.mma({number}, {mods[3]!r}, {mods[7]!r}, {a}, {b}, {c}, {where})",
            *self._loaded(i, "b32", where),
        ]

    def _shfl(self, number: int, i: Instruction, where: str | None) -> list[str]:
        _, _, mode, _ = i.opcode.split(".")
        target, _, flag = i.operands[0].partition("|")
        a, b, c, lanes = (self.operands.read(x, "b32") for x in i.operands[1:5])
        lines = [
            f"T = m.shuffle({number}, {mode!r}, {a}, {b}, {c}, {lanes}, {where})",
            self.assign(target, "T[0]", where),
        ]
        return [*lines, self.assign(flag, "T[1]", where)] if flag else lines

    def _redux(self, number: int, i: Instruction, where: str | None) -> list[str]:
        _, _, how, kind = i.opcode.split(".")
        a, lanes = self.operands.read(i.operands[1], kind), self.operands.read(i.operands[2], "b32")
        return [self.assign(i.operands[0], f"m.reduce({number}, {how!r}, {a}, {lanes}, {where}).view(u32)", where)]

    def _vote(self, number: int, i: Instruction, where: str | None) -> list[str]:
        _, _, how, _ = i.opcode.split(".")
        source = i.operands[1]
        a = f"{'~' if source[0] == '!' else ''}{self.operands.read(source.lstrip('!'), 'pred')}"
        lanes = self.operands.read(i.operands[2], "b32")
        return [self.assign(i.operands[0], f"m.vote({number}, {how!r}, {a}, {lanes}, {where})", where)]

    # Blocks

    def program(self) -> Program:
        body = self.kernel.body
        # Labels that nothing jumps to are the debugger's.
        starts = {0} | {self.kernel.labels[i.operands[0]] for i in body if i.opcode.split(".")[0] == "bra"}
        starts |= {n + 1 for n, i in enumerate(body) if i.opcode.split(".")[0] in ("bra", "ret", "exit")}
        order = sorted(n for n in starts if n < len(body))
        block_at = {start: number for number, start in enumerate(order)}
        ends: list[End] = []
        spans = []
        for number, start in enumerate(order):
            stop = order[number + 1] if number + 1 < len(order) else len(body)
            last = body[stop - 1]
            next_block = number + 1 if number + 1 < len(order) else None
            name = last.opcode.split(".")[0]
            guard = None if last.guard is None else self.operands.places[last.guard]
            if name == "bra":
                taken = block_at[self.kernel.labels[last.operands[0]]]
                ends.append(End(guard, last.negated, taken, next_block))
                stop -= 1
            elif name in ("ret", "exit"):
                ends.append(End(guard, last.negated, None, next_block))
                stop -= 1
            else:
                ends.append(End(None, False, next_block, None))
            spans.append((start, stop))
        whole, partial = Blocks(self, spans, False), Blocks(self, spans, True)
        return Program(self.kernel, whole, partial, ends, _granule(body))

    def names(self) -> dict[str, Any]:
        """Returns the functions that the expressions of :mod:`.instructions` call."""
        names: dict[str, Any] = {k: v for k, v in vars(arithmetic).items() if not k.startswith("_")}
        names |= {"where": np.where, "isnan": np.isnan, "minimum": np.minimum, "maximum": np.maximum, "abs": np.abs}
        names |= {"sqrt": np.sqrt, "rint": np.rint, "trunc": np.trunc, "floor": np.floor, "ceil": np.ceil}
        constants = [np.array([bits], dtype=f"u{int(kind[1:]) // 8}") for kind, bits in self.operands.constants]
        return names | {"TRUE": np.array([True]), "FALSE": np.array([False]), "K": constants}


class Blocks(dict[int, Block]):
    """Blocks by number, compiled by Python when they first run: many never do, least of all under a mask."""

    def __init__(self, translator: Translator, spans: list[tuple[int, int]], masked: bool) -> None:
        super().__init__()
        self.translator, self.spans, self.masked = translator, spans, masked

    def __missing__(self, number: int) -> Block:
        lines = ["def block(m, R, M):", "    pass"]
        for place in range(*self.spans[number]):
            lines += [f"    {line}" for line in self.translator.lines(place, self.masked)]
        names = self.translator.names()
        exec(compile("\n".join(lines), f"<{self.translator.kernel.name} block {number}>", "exec"), names)
        self[number] = names["block"]
        return self[number]


def _granule(body: tuple[Instruction, ...]) -> int:
    widths = [BITS[i.opcode.split(".")[-1]] // 8 for i in body if i.opcode.startswith(("ld.shared", "st.shared"))]
    return min([4, *widths])


def translate(text: str) -> Program:
    return Translator(parse(text)).program()
