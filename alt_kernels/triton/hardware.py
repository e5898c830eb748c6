"""Single instructions that Triton's language lacks, in PTX; device functions only.

Triton's interpreter has no inline assembly and takes the exact function instead.
"""

from __future__ import annotations

import triton
import triton.language as tl

HARDWARE: tl.constexpr = tl.constexpr(not triton.knobs.runtime.interpret)


@triton.jit
def log2_of(x):
    """log2 of positive normal x, one instruction where ``tl.log2`` is a polynomial of 25; subnormals count as 0.

    Off by 2^-22 at most where x is within 1/2 .. 2, by 2^-22 of the result elsewhere.
    """
    if HARDWARE:
        return tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)
    return tl.log2(x)


@triton.jit
def exp2_of(x):
    """2^x, relative error 2^-22; below 2^-126 it is 0."""
    if HARDWARE:
        return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)
    return tl.exp2(x)


@triton.jit
def rounded_product(x, y):
    """x y, which the sum over threads that follows must not take into its own instruction.

    Each thread would round the others' products and not its own, and threads that stand for one row differ by a bit.
    """
    if HARDWARE:
        return tl.inline_asm_elementwise("mul.rn.f32 $0, $1, $2;", "=f,f,f", [x, y], tl.float32, True, 1)
    return x * y


@triton.jit
def anew(x):
    """x, of which the compiler must believe that it is another one every time: it cannot be kept in a register."""
    if HARDWARE:
        return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], tl.float32, False, 1)
    return x
