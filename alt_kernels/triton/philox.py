"""Philox4x32-10 and the Gumbel noise of (seed, row, column), once for every Triton kernel; device functions only.

Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. One call gives four words, those of
four neighbouring columns; ``tl.philox`` runs its rounds with the key and the counter of the noise law (DESIGN.md).
Rounds of our own that take both halves of a product from one 64-bit multiplication compiled to as many instructions
and to 66 registers more (sm_90).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile_columns(SIZE: tl.constexpr):
    """The column that stands at each place of a tile ``[SIZE]``, SIZE a multiple of 16: a permutation of every 16.

    A thread holds the places 2q, 2q + 1, 2q + 8 and 2q + 9 of a matrix instruction's accumulator (mma and wgmma), so
    these four hold the columns 4q .. 4q + 3 of one Philox call: noise is drawn where it is added, not exchanged.
    """
    place = tl.arange(0, SIZE)
    return (place & -16) | ((place & 6) << 1) | ((place & 8) >> 2) | (place & 1)


@triton.jit
def _log(x, fraction, near_one):
    """log(x) of positive normal x, to 2 ulp; where ``near_one`` and x > 0.71, log(1 + fraction), x = 1 + fraction.

    The fraction is an argument of its own because subtracting 1 from x would round it away.
    """
    bits = x.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23  # 0 from sqrt(1/2) on
    m = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    m = tl.where(near_one & (exponent == 0), fraction, m)
    # The least-squares fit of log(1 + m) / m at 4,000 Chebyshev points of [0.7071 - 1, 1.4142 - 1]: off by 3e-8.
    p = 0.08512295 * m - 0.14258549
    p = p * m + 0.14980265
    p = p * m - 0.16579714
    p = p * m + 0.19955824
    p = p * m - 0.25001273
    p = p * m + 0.33334196
    p = p * m - 0.49999997
    p = p * m + 1.0
    # exponent as a float without a conversion, of which a GPU does an eighth as many as additions
    power = (exponent + 0x4B400000).to(tl.float32, bitcast=True) - 12582912.0
    return power * 0.6931471805599453 + m * p


@triton.jit
def gumbel_of_words(word):
    """g = -log(-log1p(-u)), u = min((word + 1/2) 2^-32, 1 - 2^-24), for uint32 words; error below 1e-6 + 2e-7 |g|."""
    signed = word.to(tl.int32, bitcast=True)
    low = signed >= 0  # u below 1/2: there u is known to full precision, above it 1 - u is
    nearest = tl.where(low, signed, ~signed)
    f = (nearest.to(tl.float32) + 0.5) * 2.3283064365386963e-10
    exponential = -_log(tl.where(low, 1.0 - f, tl.maximum(f, 5.9604644775390625e-08)), -f, low)
    return -_log(exponential, exponential, False)


@triton.jit
def gumbel_tile(seed, row, first, SIZE: tl.constexpr):
    """Noise ``[rows, SIZE]`` of the given rows (int64 ``[rows]``) and the columns ``first + tile_columns(SIZE)``.

    ``first`` is a multiple of 16. The counter is (column // 4, row low, row high, 0), the key (seed low, seed high).
    """
    block = (first // 4 + tl.arange(0, SIZE // 4)).to(tl.uint32)[None, :]
    low = row.to(tl.uint32)[:, None]
    high = (row >> 32).to(tl.uint32)[:, None]
    w0, w1, w2, w3 = tl.philox(seed, block, low, high, block * 0)
    ROWS: tl.constexpr = w0.shape[0]
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))  # [.., call, h, b] holds word 2 h + b
    # call = 4 m + q and place = 16 m + 8 h + 2 q + b
    words = tl.permute(tl.reshape(words, (ROWS, SIZE // 16, 4, 2, 2)), (0, 1, 3, 2, 4))
    return gumbel_of_words(tl.reshape(words, (ROWS, SIZE)))
