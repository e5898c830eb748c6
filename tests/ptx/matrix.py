"""Fragments of matrices over the registers of a warp: ldmatrix and mma.sync, with the layouts of the PTX ISA.

In a lane's words: group = lane / 4 and place = lane % 4. Products are exact in float64; a sum is rounded to float32
once for each instruction (truncated under :data:`.arithmetic.PESSIMISM`: hardware keeps fewer bits than this).
"""

from __future__ import annotations

import numpy as np

from . import arithmetic
from .arithmetic import Array, f16, f32, f64, toward_zero, u16, u32, widen
from .instructions import UnknownInstruction

GROUP, PLACE = np.arange(32)[:, None] // 4, np.arange(32)[:, None] % 4


def deal(rows: Array, trans: bool) -> Array:
    """``[warps, count, 8, 4]`` words, the rows of 8 x 8 matrices of 16 bits, to ``[warps * 32, count]``.

    A lane gets row ``group``, columns 2 place and 2 place + 1; with ``trans`` of the transposed matrix.
    """
    warps, count = rows.shape[:2]
    if trans:
        halves = np.ascontiguousarray(rows).view(u16)
        rows = np.ascontiguousarray(halves.swapaxes(2, 3)).view(u32)
    return rows.reshape(warps, count, 32).swapaxes(1, 2).reshape(-1, count)


def collect(words: Array, trans: bool) -> Array:
    """The inverse of ``deal``: ``[warps * 32, count]`` words of lanes to ``[warps * count * 8, 4]`` of rows."""
    count = words.shape[1]
    rows = np.ascontiguousarray(words.reshape(-1, 32, count).swapaxes(1, 2)).reshape(-1, count, 8, 4)
    if trans:
        rows = np.ascontiguousarray(rows.view(u16).swapaxes(2, 3)).view(u32)
    return rows.reshape(-1, 4)


def _layout(shape: str, halves: bool) -> tuple[Array, Array, Array, Array, int]:
    """Row and column of each element a lane holds of A, the same of B (k and n), and K."""
    if halves:
        count = {"m16n8k16": 8, "m16n8k8": 4}[shape]
        i = np.arange(count)
        row = GROUP + 8 * (i // 2 % 2)
        column = 2 * PLACE + i % 2 + 8 * (i // 4)
        j = np.arange(count // 2)
        return row, column, 2 * PLACE + j % 2 + 8 * (j // 2), GROUP + 0 * j, 2 * count
    count = {"m16n8k8": 4, "m16n8k4": 2}[shape]
    i = np.arange(count)
    j = np.arange(count // 2)
    return GROUP + 8 * (i % 2), PLACE + 4 * (i // 2), PLACE + 4 * j, GROUP + 0 * j, 2 * count


def _values(words: Array, kind: str) -> Array:
    """``[warps, 32, registers]`` to what they hold, ``[warps, 32, elements]`` float64."""
    if kind == "tf32":
        return (words & u32(0xFFFFE000)).view(f32).astype(f64)  # the lower bits are not read
    halves = np.ascontiguousarray(words).view(u16)
    return (widen(halves) if kind == "bf16" else halves.view(f16)).astype(f64)


def multiply(shape: str, kind: str, a: Array, b: Array, c: Array) -> Array:
    """``[warps, 32, registers]`` each; D = A B + C in float32, ``[warps * 32, 4]`` words."""
    if kind not in ("bf16", "f16", "tf32"):
        raise UnknownInstruction(f"mma of {kind}")
    row, column, k, n, depth = _layout(shape, kind != "tf32")
    warps = len(a)
    left, right = np.empty((warps, 16, depth)), np.empty((warps, depth, 8))
    left[:, row, column] = _values(a, kind)
    right[:, k, n] = _values(b, kind)
    i = np.arange(4)
    out_row, out_column = GROUP + 8 * (i // 2), 2 * PLACE + i % 2
    total = (left @ right)[:, out_row, out_column] + c.view(f32)
    rounded = toward_zero(total) if arithmetic.PESSIMISM else total.astype(f32)
    return rounded.view(u32).reshape(-1, 4)
