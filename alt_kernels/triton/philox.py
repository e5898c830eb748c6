"""Device functions for Philox4x32-10 and the Gumbel noise of (seed, row, column), shared by all Triton kernels.

Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. One call gives four words, for four
neighbouring columns, by the key and the counter of the noise law (DESIGN.md).

The noise dominates the cost of an assignment on a GPU, so two operations are written in PTX: a product with both its
halves (one instruction, where the compiler makes two of ``tl.umulhi`` and ``*``), and the hardware's logarithm of a
negated number. The interpreter has no PTX, so there the exact functions run.

Error of g = -log(-log(1 - u)), from PTX's documentation of lg2.approx: 2^-22 absolute for arguments within 0.5 .. 2,
else 2^-22 relative. Let e = 2^-24 and E = -log2(1 - u). Below u = 1/2, E is a polynomial with relative error 5 e.
Above, it is a logarithm of at least 1 of an argument with error 2 e: 7 e. The logarithm of E adds 3 e, or
4 e (|g| + 0.37) where it is large, and two roundings of the result add 2 e |g|. The sum is at most 10 e + 6 e |g|, or
6e-7 + 3.6e-7 |g|.
With exact logarithms, as under the interpreter, 2.4e-7 + 1.5e-7 |g| held over every word that was tried.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .hardware import HARDWARE

NATURAL: tl.constexpr = tl.constexpr(0.6931471805599453)  # log 2
SHIFT: tl.constexpr = tl.constexpr(0.5287663729448977)  # -log2(log 2), which `noise_of_words` leaves out

# log2(1 - u) / u for u <= 1/2: the minimax polynomial, relative error 2.3e-8
POLY_0: tl.constexpr = tl.constexpr(-1.4426950216293335)
POLY_1: tl.constexpr = tl.constexpr(-0.7213371992111206)
POLY_2: tl.constexpr = tl.constexpr(-0.48142820596694946)
POLY_3: tl.constexpr = tl.constexpr(-0.35029372572898865)
POLY_4: tl.constexpr = tl.constexpr(-0.3889685869216919)
POLY_5: tl.constexpr = tl.constexpr(0.29364296793937683)
POLY_6: tl.constexpr = tl.constexpr(-1.8144299983978271)
POLY_7: tl.constexpr = tl.constexpr(2.4465346336364746)
POLY_8: tl.constexpr = tl.constexpr(-2.0790767669677734)
# PTX: log2(-x), where the negation is free, and the low and high word of a product
NEGATIVE_LOG2: tl.constexpr = tl.constexpr("{ .reg .f32 t; neg.f32 t, $1; lg2.approx.ftz.f32 $0, t; }")
TIMES_A: tl.constexpr = tl.constexpr("{ .reg .b64 t; mul.wide.u32 t, $2, 0xD2511F53; mov.b64 {$0, $1}, t; }")
TIMES_B: tl.constexpr = tl.constexpr("{ .reg .b64 t; mul.wide.u32 t, $2, 0xCD9E8D57; mov.b64 {$0, $1}, t; }")


@triton.jit
def tile_columns(SIZE: tl.constexpr):
    """Returns the column at each place of a tile ``[SIZE]``, SIZE a multiple of 16: a permutation of every 16.

    A thread holds the places 2q, 2q + 1, 2q + 8 and 2q + 9 of a matrix instruction's accumulator (mma and wgmma). These
    four hold the columns 4q .. 4q + 3 of one Philox call, so noise is drawn where it is added, without an exchange.
    """
    return column_at(tl.arange(0, SIZE))


@triton.jit
def column_at(place):
    """Returns the column at a place."""
    return (place & -16) | ((place & 6) << 1) | ((place & 8) >> 2) | (place & 1)


@triton.jit
def place_of(column):
    """Returns the place of a column, the inverse of ``column_at``."""
    return (column & -16) | ((column & 2) << 2) | ((column & 12) >> 1) | (column & 1)


@triton.jit
def noise_of_words(word):
    """Returns n = log2(-log2(1 - u)), u = min((word + 1/2) 2^-32, 1 - 2^-24), for uint32; g = (SHIFT - n) log 2."""
    signed = word.to(tl.int32, bitcast=True)
    # u below 1/2 and u - 1 above, each at full precision
    h = signed.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10
    p = POLY_8 * h + POLY_7
    p = p * h + POLY_6
    p = p * h + POLY_5
    p = p * h + POLY_4
    p = p * h + POLY_3
    p = p * h + POLY_2
    p = p * h + POLY_1
    p = p * h + POLY_0
    high = tl.minimum(h, -5.9604644775390625e-08)
    if HARDWARE:
        high = tl.inline_asm_elementwise(NEGATIVE_LOG2, "=f,f", [high], tl.float32, True, 1)
        e = tl.where(signed >= 0, h * p, high)
        return tl.inline_asm_elementwise(NEGATIVE_LOG2, "=f,f", [e], tl.float32, True, 1)
    return tl.log2(-tl.where(signed >= 0, h * p, tl.log2(-high)))


@triton.jit
def gumbel_of_words(word):
    """Returns g = -log(-log1p(-u)) of the words, within the error bound above."""
    return (SHIFT - noise_of_words(word)) * NATURAL


@triton.jit
def _product(c, TEXT: tl.constexpr, FACTOR: tl.constexpr):
    """Returns the (low, high) word of c times a constant."""
    if HARDWARE:
        return tl.inline_asm_elementwise(TEXT, "=r,=r,r", [c], (tl.uint32, tl.uint32), True, 1)
    return tl.mul(c, FACTOR, sanitize_overflow=False), tl.umulhi(c, FACTOR)


@triton.jit
def philox(seed, c0, c1, c2, c3):
    """Returns the four words of uint32 counters under an int64 key; counter parts that broadcast stay small."""
    k0 = seed.to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        low_a, high_a = _product(c0, TIMES_A, 0xD2511F53)
        low_b, high_b = _product(c2, TIMES_B, 0xCD9E8D57)
        c0, c1, c2, c3 = high_b ^ c1 ^ k0, low_b, high_a ^ c3 ^ k1, low_a
        k0 = tl.add(k0, 0x9E3779B9, sanitize_overflow=False)
        k1 = tl.add(k1, 0xBB67AE85, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def noise_tile(seed, row, first, SIZE: tl.constexpr):
    """Returns ``noise_of_words`` ``[rows, SIZE]`` of int64 rows ``[rows]`` and columns ``first + tile_columns(SIZE)``.

    ``first`` is a multiple of 16. The counter is (column // 4, row low, row high, 0), the key (seed low, seed high).
    """
    block = (first // 4 + tl.arange(0, SIZE // 4)).to(tl.uint32)[None, :]
    low = row.to(tl.uint32)[:, None]
    high = (row >> 32).to(tl.uint32)[:, None]
    w0, w1, w2, w3 = philox(seed, block, low, high, high * 0)
    ROWS: tl.constexpr = w0.shape[0]
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))  # [.., call, h, b] holds word 2 h + b
    # call = 4 m + q and place = 16 m + 8 h + 2 q + b
    words = tl.permute(tl.reshape(words, (ROWS, SIZE // 16, 4, 2, 2)), (0, 1, 3, 2, 4))
    return noise_of_words(tl.reshape(words, (ROWS, SIZE)))


@triton.jit
def gumbel_tile(seed, row, first, SIZE: tl.constexpr):
    """Returns the noise g of the same elements."""
    return (SHIFT - noise_tile(seed, row, first, SIZE)) * NATURAL
