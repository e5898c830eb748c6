"""Device functions for single PTX instructions that Triton's language lacks.

Triton's interpreter has no inline assembly, so there the exact function runs instead.
"""

from __future__ import annotations

import triton
import triton.language as tl

HARDWARE: tl.constexpr = tl.constexpr(not triton.knobs.runtime.interpret)


@triton.jit
def log2_of(x):
    """Returns log2 of positive normal x in one instruction (``tl.log2`` takes 25); subnormals count as 0.

    The error is at most 2^-22 where x is within 1/2 .. 2, and 2^-22 of the result elsewhere.
    """
    if HARDWARE:
        return tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)
    return tl.log2(x)


@triton.jit
def exp2_of(x):
    """Returns 2^x with a relative error of 2^-22, and 0 below 2^-126."""
    if HARDWARE:
        return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)
    return tl.exp2(x)


@triton.jit
def one_if_less(x, y):
    """Returns 1.0 where x < y, else 0.0, in one instruction, and keeps the compiler from collecting bit masks."""
    if HARDWARE:
        return tl.inline_asm_elementwise("set.lt.f32.f32 $0, $1, $2;", "=f,f,f", [x, y], tl.float32, True, 1)
    return tl.where(x < y, 1.0, 0.0)


@triton.jit
def one_if_equal(x, y):
    """Returns 1.0 where x == y, else 0.0, as :func:`one_if_less` does."""
    if HARDWARE:
        return tl.inline_asm_elementwise("set.eq.f32.f32 $0, $1, $2;", "=f,f,f", [x, y], tl.float32, True, 1)
    return tl.where(x == y, 1.0, 0.0)


@triton.jit
def rounded_product(x, y):
    """Returns x y rounded, so that a following sum over threads cannot fuse the product into its own instruction.

    With fusion each thread would round the other threads' products but not its own, and the threads that share a row
    would differ by a bit.
    """
    if HARDWARE:
        return tl.inline_asm_elementwise("mul.rn.f32 $0, $1, $2;", "=f,f,f", [x, y], tl.float32, True, 1)
    return x * y


@triton.jit
def volatile_copy(x):
    """Returns x as a value that the compiler cannot assume unchanged, so it is not kept in a register over a loop."""
    if HARDWARE:
        return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], tl.float32, False, 1)
    return x
