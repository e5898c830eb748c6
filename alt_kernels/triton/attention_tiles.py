"""Device functions of the attention kernels: the index of a head, rows in and out, log2 of the sizes, logits.

Rows are addressed by one 64-bit base per tile and 32-bit offsets inside it. A pointer per row kept over a loop would
take twice the registers, and a 64-bit product for each row. ``unit_stride_rows`` keeps the offsets below 2^31.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .hardware import log2_of, volatile_copy

STRIDE_LIMIT = 2**22  # elements from row to row; times the 512 rows of the largest tile this still fits 32 bits


@triton.jit
def head_of(pair, heads):
    """Returns (pair, image, head) as 64-bit integers; the division is in 32 bits, at a fourth of the cost."""
    image = pair // heads
    head = pair - image * heads
    return pair.to(tl.int64), image.to(tl.int64), head.to(tl.int64)


@triton.jit
def load_rows(base, first, row, stride, live, D: tl.constexpr, BD: tl.constexpr):
    """Loads rows ``first + row`` of D elements, ``stride`` apart, as a tile of width BD; zeros past D or not live."""
    column = tl.arange(0, BD)
    pointer = base + tl.cast(first, tl.int64) * stride + (row[:, None] * stride + column[None, :])
    if D == BD:
        return tl.load(pointer, mask=live[:, None], other=0.0)
    return tl.load(pointer, mask=live[:, None] & (column < D)[None, :], other=0.0)


@triton.jit
def store_rows(base, first, row, stride, live, value, D: tl.constexpr, BD: tl.constexpr):
    """Stores what ``load_rows`` loads, rounded to the pointer's dtype."""
    column = tl.arange(0, BD)
    pointer = base + tl.cast(first, tl.int64) * stride + (row[:, None] * stride + column[None, :])
    value = value.to(base.dtype.element_ty)
    if D == BD:
        tl.store(pointer, value, mask=live[:, None])
    else:
        tl.store(pointer, value, mask=live[:, None] & (column < D)[None, :])


@triton.jit
def log2(x, HALF: tl.constexpr):
    """Returns log2(x); with HALF by the hardware, far more exact than the half precision that the result enters."""
    return log2_of(x) if HALF else tl.log2(x)


@triton.jit
def key_bias(size_row, key, keys, HAS_SIZE: tl.constexpr, HALF: tl.constexpr):
    """Returns log2(s) of a tile of keys; -inf, which is log2(0), for masked keys and for those past the end."""
    if HAS_SIZE:
        size = tl.load(size_row + key, mask=key < keys, other=0.0)
        bias = log2(size, HALF)
        if HALF:
            bias = tl.where(size == 1.0, 0.0, bias)  # a size of 1 must equal no size, to the last bit
    else:
        bias = tl.where(key < keys, 0.0, float("-inf"))
    return bias


@triton.jit
def _left(a, b):
    return a


@triton.jit
def _spread(bias, KEPT: tl.constexpr):
    """Returns a bias of keys for the columns of logits, read from shared memory at every use to save registers.

    In a product's layout a thread holds a fourth of all columns. The compiler would compute the bias in that layout
    and, where it is KEPT over a loop, hold it in registers. It cannot move the logarithm across a reduction of two
    equal columns, and it cannot hoist a volatile value out of the loop.
    """
    if KEPT:
        bias = volatile_copy(bias)
    return tl.reduce(bias[:, None] + tl.zeros([1, 2], tl.float32), 1, _left)


@triton.jit
def logits(q, k, bias, scale, BIASED: tl.constexpr, KEPT: tl.constexpr, PRECISION: tl.constexpr):
    """Returns q k^T scale + bias ``[BM, BN]`` in units of log 2; scale holds log2(e). KEPT: see :func:`_spread`."""
    # The product comes first, so that the bias does not occupy registers meanwhile.
    s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    if BIASED:  # otherwise every size is 1 and no key is past the end
        s += _spread(bias, KEPT)[None, :]
    return s


def unit_stride_rows(x: Tensor) -> Tensor:
    """Returns ``x`` if its rows are contiguous and near each other, as ``load_rows`` assumes; otherwise a copy."""
    *_, row, step = x.stride()
    return x if step == 1 and row < STRIDE_LIMIT else x.contiguous()
