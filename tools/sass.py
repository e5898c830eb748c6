"""Reads the cycles of a multiprocessor's pipes that a loop of compiled code takes, from the assembler's listing.

``python -m tools.aot --loops --only CASE`` prints it for sm_90. For every loop: the instructions of one
warp's iteration, and the cycles for which they keep each pipe of a sub-partition (a fourth of a multiprocessor) busy.
The largest of them, times iterations and warps over sub-partitions, is a bound that no schedule beats. A kernel takes
longer by the latencies that its other warps do not hide. Bytes from memory and L2 are not counted here.

Rates are those of compute capability 9.0 in the throughput table of NVIDIA's CUDA C++ Programming Guide, and 512
dense bfloat16 products per cycle and tensor core, of which a multiprocessor has four (989 TFLOP/s of an H100 at
1.83 GHz on 132 multiprocessors).
"""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

#: Cycles of a sub-partition for one instruction of a warp, by pipe and the opcode it starts with; the first that fits.
RATES: tuple[tuple[str, str, float], ...] = (
    (r"(H|U?I|D|Q)?(GMMA|MMA)|UTC\w*MMA", "tensor", 0.0),  # by shape, in `matrix_cycles`
    (r"MUFU|I2F\b|F2I|F2F\b|POPC|FLO|BREV", "xu", 8),
    (r"(LDG|STG|LDS|STS|LDL|STL|LDGSTS|LDSM|STSM|SHFL|ATOM\w*|RED)", "lsu", 4),  # times the width
    (r"FFMA|FADD|FMUL|HFMA2|HADD2|HMUL2", "fma", 1),
    (r"IMAD|IDP", "fma", 2),
    (
        r"BRA|EXIT|BAR|WARPSYNC|BSSY|BSYNC|NOP|DEPBAR|WARPGROUP|LDGDEPBAR|FENCE|MEMBAR|ERRBAR|CCTL|NANOSLEEP",
        "control",
        1,
    ),
    (r"U[A-Z0-9]+|R2UR|S2UR|CS2UR|LDC|ULDC|S2R|CS2R", "uniform", 2),
    (r"[A-Z]", "alu", 2),  # comparisons, selections, logic, shifts, integer sums, packing, moves
)
PRODUCTS = 512  # of half precision, a cycle and tensor core
_LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Za-z0-9_.]*)([^;]*);")
_LABEL = re.compile(r"^(\.L_\w+):")
_WIDTH = {"64": 2, "128": 4}


class Loop(NamedTuple):
    """Body of a loop, without the loops inside it."""

    start: int  # address of its first instruction; -1: the code outside all loops
    end: int
    depth: int  # 0: the kernel itself, 1: an outermost loop
    instructions: int
    matrix: int
    cycles: dict[str, float]  # of one iteration of one warp, by pipe; "issue" is one cycle per instruction

    @property
    def bound(self) -> tuple[str, float]:
        """Returns the busiest pipe and its cycles."""
        pipe = max(self.cycles, key=lambda name: self.cycles[name])
        return pipe, self.cycles[pipe]


def matrix_cycles(opcode: str) -> float:
    """Returns the cycles that a matrix instruction occupies its sub-partition's tensor core; 0 for unknown shapes."""
    # A warp group's, on all four tensor cores: k is 16 for half precision, 8 for tf32, which runs at half the rate.
    if shape := re.match(r"[HIQ]GMMA\.64x(\d+)x\d+", opcode):
        return 64 * int(shape[1]) * 16 / (4 * PRODUCTS)
    if shape := re.match(r"HMMA\.(16)(8)(8|16)\b", opcode):  # a warp's own; 1688 with TF32 operands at half the rate
        slow = 2 if ".TF32" in opcode else 1
        return slow * int(shape[1]) * int(shape[2]) * int(shape[3]) / PRODUCTS
    return 0.0


def cost(opcode: str) -> tuple[str, float]:
    """Returns the pipe and its cycles for one instruction of one warp."""
    for pattern, pipe, cycles in RATES:
        if re.match(pattern, opcode):
            if pipe == "tensor":
                return pipe, matrix_cycles(opcode)
            if pipe == "lsu":
                return pipe, cycles * max((_WIDTH.get(part, 1) for part in opcode.split(".")[1:]), default=1)
            return pipe, cycles
    raise ValueError(f"opcode: expected one that starts with a capital letter, got {opcode!r}")


def loops(sass: str) -> list[Loop]:
    """Returns the whole kernel without its loops, then every loop of a listing (``nvdisasm -c``) in code order.

    A backward branch closes a loop; the branch to itself that pads a kernel's end does not count.
    """
    code: list[tuple[int, str, str]] = []
    labels: dict[str, int] = {}
    waiting: list[str] = []
    for line in sass.splitlines():
        if label := _LABEL.match(line.strip()):
            waiting.append(label[1])
        elif found := _LINE.search(line):
            address = int(found[1], 16)
            labels.update(dict.fromkeys(waiting, address))
            waiting.clear()
            code.append((address, found[2], found[3]))
    spans = set()
    for address, opcode, rest in code:
        target = re.search(r"\((\.L_\w+)\)", rest)
        if opcode.startswith("BRA") and target and labels.get(target[1], address) < address:
            spans.add((labels[target[1]], address))
    # Two branches to one label are one loop, which ends at the farther branch.
    ends = {start: max(end for first, end in spans if first == start) for start, _ in spans}
    whole = {-1: code[-1][0]} if code else {}
    return [_loop(start, end, whole | ends, code) for start, end in sorted((whole | ends).items())]


def _loop(start: int, end: int, ends: dict[int, int], code: list[tuple[int, str, str]]) -> Loop:
    inner = [(s, e) for s, e in ends.items() if start <= s and e <= end and (s, e) != (start, end)]
    cycles: Counter[str] = Counter()
    count = matrix = 0
    for address, opcode, _ in code:
        if start <= address <= end and not any(s <= address <= e for s, e in inner):
            pipe, busy = cost(opcode)
            cycles[pipe] += busy
            count += 1
            matrix += pipe == "tensor"
    cycles["issue"] = count
    depth = sum(s <= start and end <= e for s, e in ends.items()) - 1
    return Loop(start, end, depth, count, matrix, dict(cycles))


def report(sass: str) -> list[str]:
    """Returns one line per loop."""
    lines = []
    for loop in loops(sass):
        pipe, busy = loop.bound
        where = f"loop {loop.start:#x}..{loop.end:#x}" if loop.depth else "outside loops"
        shares = ", ".join(f"{name} {value:.0f}" for name, value in sorted(loop.cycles.items(), key=lambda c: -c[1]))
        lines.append(
            f"{'  ' * loop.depth}{where}: {loop.instructions} instructions,"
            f" {loop.matrix} of them matrix; bound by {pipe}, {busy:.0f} cycles ({shares})"
        )
    return lines
