"""wgmma of sm_90: matrices in shared memory by descriptor, products by groups of four warps.

The product is taken when it is issued, and its registers have it at once; the memory it reads is held until the wait
that covers it, so that a write to it before then is found. What stores have written must have been
fenced (fence.proxy.async) by who wrote or who reads; Triton fences no cp.async, and nor is it asked for here.
What is not found: registers that are read too early.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from . import arithmetic
from .arithmetic import Array, f16, f32, f64, toward_zero, u16, u32, widen
from .instructions import SHARED_BASE, UnknownInstruction
from .matrix import GROUP, PLACE
from .memory import AccessError
from .shared import THREADS

if TYPE_CHECKING:
    from .machine import Machine

WIDTH = {1: 128, 2: 64, 3: 32}  # bytes of a swizzled row, by the descriptor's mode
ITEM = {"f16": 2, "bf16": 2, "tf32": 4}


def _decode(words: Array, kind: str) -> Array:
    """Elements as they lie, unsigned, to float64."""
    if kind == "tf32":
        return (words & u32(0xFFFFE000)).view(f32).astype(f64)
    return (widen(words) if kind == "bf16" else words.view(f16)).astype(f64)


def addresses(descriptor: Array, rows: int, depth: int, item: int, across: bool) -> Array:
    """``[groups, rows, depth]`` addresses of a matrix; ``across``: neighbours in memory are of one column.

    Rows of 8 x ``width`` bytes lie together; in the k direction (or, across, in the other) what follows is a stride
    away. The address' bits from 7 on are added, without carry, to those from 4 on.
    """
    field = [((descriptor >> np.uint64(place)) & np.uint64(0x3FFF)).astype(np.int64) << 4 for place in (0, 16, 32)]
    start, leading, stride = (x[:, None, None] for x in field)
    mode = np.unique(descriptor >> np.uint64(62))
    if len(mode) != 1 or int(mode[0]) not in WIDTH or ((descriptor >> np.uint64(49)) & np.uint64(7)).any():
        raise UnknownInstruction("a matrix without swizzle, or off its 1,024 bytes")
    width = WIDTH[int(mode[0])]
    row, column = np.arange(rows)[None, :, None], np.arange(depth)[None, None, :]
    if across:
        byte = row * item
        at = start + byte // width * leading + column // 8 * stride + column % 8 * width + byte % width
    else:
        at = start + row // 8 * stride + row % 8 * width + column * item
    return at ^ (((at >> 7) & (width // 16 - 1)) << 4)


class Warpgroups:
    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.committed = np.zeros(machine.lanes, np.int64)
        self.under_way: list[tuple[int, int, Array, int]] = []  # instruction, leading thread, cells it reads, group

    def lanes(self, number: int, where: Array | None) -> Array:
        """``[groups, 128]`` threads."""
        lanes = self.machine.together(number, where)
        if len(lanes) % 128 or (lanes.reshape(-1, 128)[:, 0] % 128).any():
            raise UnknownInstruction(f"a part of a warp group: {self.machine.where(number)}")
        return lanes.reshape(-1, 128)

    def commit(self, number: int, where: Array | None) -> None:
        self.committed[self.lanes(number, where)] += 1

    def wait(self, number: int, left: int, where: Array | None) -> None:
        leaders = set(self.lanes(number, where)[:, 0].tolist())
        rest = []
        for issued, leader, cells, group in self.under_way:
            if leader in leaders and group < self.committed[leader] - left:
                self.machine.shared.held[cells] -= 1
            else:
                rest.append((issued, leader, cells, group))
        self.under_way = rest

    def matrix(
        self, number: int, leaders: Array, given: Array, shape: tuple[int, int], kind: str, across: bool
    ) -> Array:
        """A matrix in shared memory, ``[groups, rows, k]``."""
        machine, shared, item = self.machine, self.machine.shared, ITEM[kind]
        offset = addresses(machine.spread(given)[leaders], *shape, item, across) - SHARED_BASE
        if (bad := ((offset < 0) | (offset + item > shared.size)).any((1, 2))).any():
            lane = int(leaders[np.flatnonzero(bad)[0]])
            machine.fail(AccessError, number, lane, "a matrix out of bounds in shared memory")
        places = offset + machine.program_of[leaders][:, None, None] * shared.stride
        for leader, part in zip(leaders, places, strict=True):
            cells = np.unique(part // shared.granule)
            stamps = shared.wrote[cells]
            writer = machine.program_of[leader] * machine.threads + (stamps & THREADS)
            late = stamps > np.maximum(shared.fenced[writer], shared.fenced[leader])
            if (late & ~shared.copied[cells]).any():
                machine.hazard(number, "matrix product of what was written without a fence.proxy.async", int(leader))
            shared.note_read(number, np.array([leader]), cells[None])
            shared.held[cells] += 1
            self.under_way.append((number, int(leader), cells, int(self.committed[leader])))
        return _decode(shared.bytes.view(f"u{item}")[places // item], kind)

    def multiply(
        self, number: int, shape: str, kind: str, d: list[Array], a: Any, b: Array, add: Array,
        across: tuple[bool, bool], where: Array | None,
    ) -> list[Array]:  # fmt: skip
        """D = A B + D (or A B) of 64 rows; A by descriptor or in registers, as four warps' fragments of 16 rows."""
        size = re.fullmatch(r"m64n(\d+)k(\d+)", shape)
        if size is None or kind not in ITEM:
            raise UnknownInstruction(self.machine.where(number))
        columns, depth = int(size[1]), int(size[2])
        machine, groups = self.machine, self.lanes(number, where)
        if isinstance(a, list):
            words = np.stack([machine.spread(x)[groups] for x in a], -1).reshape(-1, 4, 32, len(a))
            values = _decode(words if kind == "tf32" else np.ascontiguousarray(words).view(u16), kind)
            i = np.arange(values.shape[-1])
            if kind == "tf32":
                row, column = GROUP + 8 * (i % 2), PLACE + 4 * (i // 2)
            else:
                row, column = GROUP + 8 * (i // 2 % 2), 2 * PLACE + i % 2 + 8 * (i // 4)
            left = np.empty((len(groups), 4, 16, depth))
            left[:, :, row, column] = values
            left = left.reshape(-1, 64, depth)
        else:
            left = self.matrix(number, groups[:, 0], a, (64, depth), kind, across[0])
        right = self.matrix(number, groups[:, 0], b, (columns, depth), kind, across[1])
        product = (left @ right.swapaxes(1, 2)).reshape(-1, 4, 16, columns)
        i = np.arange(columns // 2)
        total = product[:, :, GROUP + 8 * (i // 2 % 2), 8 * (i // 4) + 2 * PLACE + i % 2].reshape(-1, columns // 2)
        flat = groups.ravel()
        before = np.stack([machine.spread(x)[flat] for x in d], 1).view(f32)
        total = np.where(machine.spread(add)[flat][:, None], total + before, total)
        rounded = toward_zero(total) if arithmetic.PESSIMISM else total.astype(f32)
        return machine._loaded(flat, rounded.view(u32))
