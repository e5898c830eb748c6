"""Scores of bipartite matching in Triton: device functions that the kernels of :mod:`.bipartite_soft_matching` inline.

Symbols: BA rows of A and BB rows of B in a tile, C channels, BC of them in a tile; i indexes A, j indexes B.

A score is dot(x_a, x_b) / (|x_a| |x_b|). The dot is on the rows as stored, times a power of two per row, and the norms
are divided out in the epilogue, so rows are not rounded before the dot.

- bfloat16 rows are scaled to a largest magnitude in [2, 4) (subnormal rows lower, still far from underflow). A power
  of two does not round. Only values of 2^-133 of the largest fall below the subnormals, so the scaled row is exact.
- float16 rows are not scaled: 65504^2 C is finite in float32 for every C that fits a GPU, and 2^-48 is no subnormal
  of float32. Scaling would round the subnormals that it makes.
- A product of two float16 or bfloat16 numbers is exact in float32, so the tensor cores only round sums, in float32.
- float32 rows (and sums over heads) are scaled too, then split into two float16 numbers, x = high + low, where low
  is exact to 2^-22 of the largest magnitude. Three products run on the tensor cores, without low low. Their error is
  about 2^-21 of |x_a| |x_b|, like that of three TF32 products, with half the shared memory and half the registers.

The power of two cancels in the quotient. Where rows have at most 21 bits, and norms and scores are float32 numbers,
every step is exact. The largest magnitude is compared as integer bits, where NaN > inf > finite, so no floating-point
maximum has to propagate NaN.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _load_rows(x_ptr, token, live, first, x_n, x_h, C: tl.constexpr, HEADS: tl.constexpr, BC: tl.constexpr):
    """Loads channels [first, first + BC) of the rows ``token``; with several heads their sum in float32.

    It is the sum and not the mean, because cosines are invariant to the factor H.
    """
    channel = first + tl.arange(0, BC)
    at = token.to(tl.int64)[:, None] * x_n + channel[None, :]
    inside = live[:, None] & (channel < C)[None, :]
    tile = tl.load(x_ptr + at, mask=inside, other=0.0)
    if HEADS > 1:
        tile = tile.to(tl.float32)
        for _ in tl.range(1, HEADS, loop_unroll_factor=4):  # several loads in flight
            x_ptr += x_h  # a scalar: a tile of pointers carried through a loop takes two registers per element
            tile += tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    return tile


@triton.jit
def _peak(tile):
    """Returns the largest magnitude of each row, as the bits of a float32."""
    return tl.max(tile.to(tl.float32).to(tl.int32, bitcast=True) & 0x7FFFFFFF, 1)


@triton.jit
def _rows_and_norms(x_ptr, token, live, x_n, x_h, C: tl.constexpr, HEADS: tl.constexpr, BC: tl.constexpr):
    """Returns the first BC channels of the scaled rows in float32, their scale, 1 / norm and validity.

    A row that is not ``live`` is loaded as zeros and so has no norm. Where C > BC the whole row is read three times.
    """
    tile = _load_rows(x_ptr, token, live, 0, x_n, x_h, C, HEADS, BC)
    peak = _peak(tile)
    for first in range(BC, C, BC):
        peak = tl.maximum(peak, _peak(_load_rows(x_ptr, token, live, first, x_n, x_h, C, HEADS, BC)))
    if tile.dtype == tl.float16:
        scale = tl.full(peak.shape, 1.0, tl.float32)
    else:
        # 2^(128 - e) for a biased exponent e in 1..254: peak in [2, 4). The clamp keeps it a normal number.
        exponent = tl.minimum(tl.maximum(255 - (peak >> 23), 1), 254)
        scale = (exponent << 23).to(tl.float32, bitcast=True)
    scaled = tile.to(tl.float32) * scale[:, None]
    square = tl.sum(scaled * scaled, 1)
    for first in range(BC, C, BC):
        more = _load_rows(x_ptr, token, live, first, x_n, x_h, C, HEADS, BC).to(tl.float32) * scale[:, None]
        square += tl.sum(more * more, 1)
    valid = (peak > 0) & (peak < 0x7F800000)
    inverse = tl.div_rn(1.0, tl.sqrt_rn(tl.where(valid, square, 1.0)))
    return scaled, scale, inverse, valid


@triton.jit
def _dot(a, b, acc):
    """Returns acc + a b^T of scaled rows in float32; float32 operands as high + low, the small products first."""
    if a.dtype == tl.float32:
        a_high, b_high = a.to(tl.float16), b.to(tl.float16)
        a_low, b_low = (a - a_high.to(tl.float32)).to(tl.float16), (b - b_high.to(tl.float32)).to(tl.float16)
        acc = tl.dot(a_low, tl.trans(b_high), acc)
        acc = tl.dot(a_high, tl.trans(b_low), acc)
        acc = tl.dot(a_high, tl.trans(b_high), acc)
    else:
        acc = tl.dot(a, tl.trans(b), acc)
    return acc


@triton.jit
def best_of_rows(
    x_ptr,
    i,  # [BA] rows of A, live where < even
    even,
    first_j,  # rows of B from here on, a multiple of BB
    odd,  # up to here
    num_protected,
    x_n,
    x_h,
    C: tl.constexpr,
    HEADS: tl.constexpr,
    BA: tl.constexpr,
    BB: tl.constexpr,
    BC: tl.constexpr,
):
    """Returns the highest score times |a|, the lowest j that has it, and 1 / |a|, [BA] each; -inf and 0 without a norm.

    1 / |a| is the same for a whole row, so it is applied after the maximum, also after that of several programs: two
    scores that only this product's rounding makes equal stay different.
    """
    a_token = num_protected + num_protected % 2 + 2 * i
    a, a_scale, a_inverse, a_valid = _rows_and_norms(x_ptr, a_token, i < even, x_n, x_h, C, HEADS, BC)
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty if HEADS == 1 else tl.float32
    # Without NaN among its scores every thread that shares a row finds the same best.
    a = tl.where(a_valid[:, None], a, 0.0).to(DTYPE)
    best = tl.full([BA], float("-inf"), tl.float32)
    partner = tl.zeros([BA], tl.int32)
    for start in range(first_j, odd, BB):
        j = start + tl.arange(0, BB)
        b_token = num_protected + 1 - num_protected % 2 + 2 * j
        b, b_scale, b_inverse, b_valid = _rows_and_norms(x_ptr, b_token, j < odd, x_n, x_h, C, HEADS, BC)
        b = b.to(DTYPE)
        dot = _dot(a, b, tl.zeros([BA, BB], tl.float32))
        for first in range(BC, C, BC):
            more_a = _load_rows(x_ptr, a_token, i < even, first, x_n, x_h, C, HEADS, BC)
            more_b = _load_rows(x_ptr, b_token, j < odd, first, x_n, x_h, C, HEADS, BC)
            more_a = tl.where(a_valid[:, None], more_a.to(tl.float32) * a_scale[:, None], 0.0).to(a.dtype)
            more_b = (more_b.to(tl.float32) * b_scale[:, None]).to(b.dtype)
            dot = _dot(more_a, more_b, dot)
        score = tl.where(b_valid[None, :], dot * b_inverse[None, :], float("-inf"))
        top, at = tl.max(score, 1, return_indices=True, return_indices_tie_break_left=True)
        better = top > best  # the earlier tile wins a tie
        best = tl.where(better, top, best)
        partner = tl.where(better, start + at, partner)
    return tl.where(a_valid, best, float("-inf")), tl.where(a_valid, partner, 0), a_inverse


@triton.jit
def store_best(scratch_ptr, i, even, plane, part, parts, best, partner, inverse):
    """Stores what ``best_of_rows`` found in a part of B. Planes of the scratch: scores, partners, one of 1 / |a|."""
    scratch_ptr += i
    tl.store(scratch_ptr + part * plane, best, mask=i < even)
    tl.store(scratch_ptr + (parts + part) * plane, partner.to(tl.float32, bitcast=True), mask=i < even)
    tl.store(scratch_ptr + 2 * parts * plane, inverse, mask=(i < even) & (part == 0))


@triton.jit
def load_best(scratch_ptr, i, even, plane, parts, PARTS: tl.constexpr):
    """Returns score and j of the rows i, the bits of one program that sees all parts; -inf past |A|.

    Parts are compared in ascending order, strictly, so the lowest j of equal scores stays. All loads are independent.
    """
    scratch_ptr += i
    best = tl.load(scratch_ptr, mask=i < even, other=float("-inf"))
    partner = tl.load(scratch_ptr + parts * plane, mask=i < even, other=0.0).to(tl.int32, bitcast=True)
    for part in tl.static_range(1, PARTS):
        there = (i < even) & (part < parts)
        other = tl.load(scratch_ptr + part * plane, mask=there, other=float("-inf"))
        its = tl.load(scratch_ptr + (parts + part) * plane, mask=there, other=0.0).to(tl.int32, bitcast=True)
        better = other > best
        best = tl.where(better, other, best)
        partner = tl.where(better, its, partner)
    return best * tl.load(scratch_ptr + 2 * parts * plane, mask=i < even, other=1.0), partner
