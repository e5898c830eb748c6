"""Pieces of the attention kernels: where a program's head lies, rows in and out, log2 of the sizes, logits.

Rows are addressed as one 64-bit base a tile and 32-bit offsets inside it: a pointer a row kept over a loop would take
twice the registers, and a 64-bit product for each. ``unit_stride_rows`` keeps those offsets below 2^31.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .hardware import anew, log2_of
from .host import unit_stride

STRIDE_LIMIT = 2**22  # elements from row to row: times the 512 rows of the largest tile that is still 32 bits


@triton.jit
def head_of(pair, heads):
    """(pair, image, head) as 64-bit integers; the division is a 32-bit one, which is a fourth of the other."""
    image = pair // heads
    head = pair - image * heads
    return pair.to(tl.int64), image.to(tl.int64), head.to(tl.int64)


@triton.jit
def load_rows(base, first, row, stride, live, D: tl.constexpr, BD: tl.constexpr):
    """Rows ``first + row`` of D elements, ``stride`` apart, as a tile of width BD; zeros where not live, beyond D."""
    column = tl.arange(0, BD)
    pointer = base + tl.cast(first, tl.int64) * stride + (row[:, None] * stride + column[None, :])
    if D == BD:
        return tl.load(pointer, mask=live[:, None], other=0.0)
    return tl.load(pointer, mask=live[:, None] & (column < D)[None, :], other=0.0)


@triton.jit
def store_rows(base, first, row, stride, live, value, D: tl.constexpr, BD: tl.constexpr):
    """The inverse of ``load_rows``, rounded to the pointer's dtype."""
    column = tl.arange(0, BD)
    pointer = base + tl.cast(first, tl.int64) * stride + (row[:, None] * stride + column[None, :])
    value = value.to(base.dtype.element_ty)
    if D == BD:
        tl.store(pointer, value, mask=live[:, None])
    else:
        tl.store(pointer, value, mask=live[:, None] & (column < D)[None, :])


@triton.jit
def log2(x, HALF: tl.constexpr):
    """HALF: what it goes into is rounded to half precision, and the hardware's own logarithm is far finer than that."""
    return log2_of(x) if HALF else tl.log2(x)


@triton.jit
def key_bias(size_row, key, keys, HAS_SIZE: tl.constexpr, HALF: tl.constexpr):
    """log2(s) of a tile of keys; -inf, which is log2(0), for a masked key and for one past the end."""
    if HAS_SIZE:
        size = tl.load(size_row + key, mask=key < keys, other=0.0)
        bias = log2(size, HALF)
        if HALF:
            bias = tl.where(size == 1.0, 0.0, bias)  # a size of 1 is no size at all, to the last bit
    else:
        bias = tl.where(key < keys, 0.0, float("-inf"))
    return bias


@triton.jit
def _left(a, b):
    return a


@triton.jit
def _spread(bias, KEPT: tl.constexpr):
    """A bias of keys for the columns of logits, fetched through shared memory every time it is asked for.

    A thread of a product's layout holds a fourth of all columns. The compiler would rather compute the bias there, and
    where it is KEPT over a loop, once before it, and keep these registers: across a reduction of two equal columns it
    cannot move the logarithm, and out of the loop it cannot move what may have changed.
    """
    if KEPT:
        bias = anew(bias)
    return tl.reduce(bias[:, None] + tl.zeros([1, 2], tl.float32), 1, _left)


@triton.jit
def logits(q, k, bias, scale, BIASED: tl.constexpr, KEPT: tl.constexpr, PRECISION: tl.constexpr):
    """q k^T scale + bias in units of log 2, ``[BM, BN]``; scale holds log2(e). KEPT: the bias outlives a loop."""
    # The product first: what comes after it need not wait in registers until it is done.
    s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    if BIASED:  # or every size is 1 and no key is past the end
        s += _spread(bias, KEPT)[None, :]
    return s


def unit_stride_rows(x: Tensor) -> Tensor:
    """``x`` itself where its rows are contiguous and near each other, as ``load_rows`` assumes; otherwise a copy."""
    x = unit_stride(x)
    return x if x.stride(-2) < STRIDE_LIMIT else x.contiguous()
