"""Arithmetic of PTX instructions on NumPy arrays with one element per thread, after NVIDIA's PTX ISA documentation.

Registers are unsigned integers of their width; a float is a view of them. Where the documentation allows an error
(``.approx``, ``.full``) the result is the correctly rounded one, unless :data:`PESSIMISM` is above 0: then it is off
by that share of the documented bound, up, down or not at all, as a function of its bits, so that it repeats.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
u8, u16, u32, u64 = np.uint8, np.uint16, np.uint32, np.uint64
i8, i16, i32, i64 = np.int8, np.int16, np.int32, np.int64
f16, f32, f64 = np.float16, np.float32, np.float64

PESSIMISM = 0.0
TINY = np.finfo(f32).tiny


# Floats


def widen(bits: Array) -> Array:
    """bfloat16 to float32, exactly."""
    return (bits.astype(u32) << u32(16)).view(f32)


def to_bf16(x: Array) -> Array:
    """float32 to the bits of the nearest bfloat16, ties to even; NaN to 0x7FFF as the instruction has it."""
    bits = x.view(u32)
    rounded = (bits + u32(0x7FFF) + ((bits >> u32(16)) & u32(1))) >> u32(16)
    return np.where(np.isnan(x), u32(0x7FFF), rounded).astype(u16)


def to_f16(x: Array) -> Array:
    """float32 to the bits of the nearest float16; NaN to 0x7FFF."""
    return np.where(np.isnan(x), u16(0x7FFF), x.astype(f16).view(u16))


def toward_zero(x: Array) -> Array:
    """float64 to float32, truncated."""
    near = x.astype(f32)
    over = np.abs(near.astype(f64)) > np.abs(x)
    return np.where(over, np.nextafter(near, f32(0)), near)


def to_tf32(x: Array) -> Array:
    """float32 to the nearest tf32 (10 bits of fraction), ties away from zero (``cvt.rna``)."""
    bits = x.view(u32)
    return np.where(np.isfinite(x), (bits + u32(0x1000)) & u32(0xFFFFE000), bits)


def flush(x: Array) -> Array:
    """``.ftz``: subnormals are zeros of the same sign."""
    return np.where(np.abs(x) < TINY, np.copysign(f32(0), x), x)


def fma(a: Array, b: Array, c: Array) -> Array:
    """a b + c of float32, rounded once but for double rounding.

    The product is exact in float64; the sum is rounded to 53 bits and then to 24, which differs from one rounding only
    if the first lands halfway between two floats: about once in 2^29.
    """
    return (a.astype(f64) * b + c).astype(f32)


def fma_ftz(a: Array, b: Array, c: Array) -> Array:
    return flush(fma(flush(a), flush(b), flush(c)))


def _zeros_apart(a: Array, b: Array, joined: Array, chosen: Array) -> Array:
    """min and max order -0 below +0, which compare equal; equal floats otherwise have equal bits."""
    return np.where(a == b, joined.view(f32), chosen)


def fmax(a: Array, b: Array) -> Array:
    """The other operand where one is NaN."""
    return _zeros_apart(a, b, a.view(u32) & b.view(u32), np.fmax(a, b))


def fmin(a: Array, b: Array) -> Array:
    return _zeros_apart(a, b, a.view(u32) | b.view(u32), np.fmin(a, b))


def fmax_nan(a: Array, b: Array) -> Array:
    """NaN where one is."""
    return _zeros_apart(a, b, a.view(u32) & b.view(u32), np.maximum(a, b))


def fmin_nan(a: Array, b: Array) -> Array:
    return _zeros_apart(a, b, a.view(u32) | b.view(u32), np.minimum(a, b))


def _direction(bits: Array) -> Array:
    """-1, 0 or 1 from the bits of a result."""
    return ((bits * u32(2654435761)) >> u32(9)).astype(f32) % f32(3) - f32(1)


def approximate(exact: Array, units: float, absolute: float = 0.0) -> Array:
    """float64 to float32; with pessimism off by as many units in the last place as documented, or by ``absolute``."""
    near = exact.astype(f32)
    if not PESSIMISM:
        return near
    step = _direction(near.view(u32)).astype(f64) * PESSIMISM
    width = np.maximum(units * np.abs(np.spacing(near).astype(f64)), absolute)
    moved = (exact + step * width).astype(f32)
    # Special results are exact: zeros, infinities, NaN, and powers that are whole.
    return np.where(np.isfinite(near) & (near != 0) & (exact != near), moved, near)


def ex2(x: Array) -> Array:
    """2^x; at most 2 units off."""
    return approximate(np.exp2(x.astype(f64)), 2)


def lg2(x: Array) -> Array:
    """log2 x; off by 2^-22 absolutely between 1/2 and 2, relatively elsewhere."""
    wide = x.astype(f64)
    exact = np.log2(wide)
    return approximate(exact, 2, np.where((wide > 0.5) & (wide < 2), 2.0**-22, 0.0))


def rcp(x: Array) -> Array:
    return approximate(1.0 / x.astype(f64), 1)


def sqrt_approx(x: Array) -> Array:
    """Relative error 2^-23."""
    return approximate(np.sqrt(x.astype(f64)), 1)


def rsqrt(x: Array) -> Array:
    """Relative error 2^-22.9."""
    return approximate(1.0 / np.sqrt(x.astype(f64)), 2)


def div_full(a: Array, b: Array) -> Array:
    return approximate(a.astype(f64) / b, 2)


def div_rn(a: Array, b: Array) -> Array:
    return (a / b).astype(f32)


def to_integer(x: Array, kind: Any, rounding: str) -> Array:
    """Float to integer: NaN is 0 and what lies outside becomes the nearest bound, as all such conversions do."""
    wide = x.astype(f64)
    whole = {"rzi": np.trunc, "rni": np.rint, "rmi": np.floor, "rpi": np.ceil}[rounding](wide)
    info = np.iinfo(kind)
    inside = (whole > info.min) & (whole < float(info.max))
    edges = np.where(whole > 0, kind(info.max), kind(info.min))
    return np.where(np.isnan(wide), kind(0), np.where(inside, np.where(inside, whole, 0).astype(kind), edges))


# Integers


def mul_hi(a: Array, b: Array, wide: Any) -> Array:
    """The upper half of the product of 32-bit numbers, by 64-bit ones of the same sign rules."""
    return ((a.astype(wide) * b.astype(wide)) >> wide(32)).astype(a.dtype)


def shift_left(a: Array, n: Array) -> Array:
    """Shifts past the width give zero; NumPy leaves them undefined."""
    bits = 8 * a.dtype.itemsize
    small = n < u32(bits)
    return np.where(small, a << np.where(small, n, u32(0)).astype(a.dtype), a.dtype.type(0))


def shift_right(a: Array, n: Array) -> Array:
    """Signed arrays are filled with their sign, unsigned ones with zero."""
    bits = 8 * a.dtype.itemsize
    if a.dtype.kind == "i":
        return a >> np.minimum(n, u32(bits - 1)).astype(a.dtype)
    small = n < u32(bits)
    return np.where(small, a >> np.where(small, n, u32(0)).astype(a.dtype), a.dtype.type(0))


def div_int(a: Array, b: Array) -> Array:
    """Truncated as in C; by zero all ones, which is one of the unspecified values that hardware gives."""
    safe = np.where(b == 0, b.dtype.type(1), b)
    quotient = a // safe
    if a.dtype.kind == "i":
        quotient = quotient + ((a - quotient * safe != 0) & ((a < 0) != (safe < 0))).astype(a.dtype)
    return np.where(b == 0, np.array(-1).astype(a.dtype), quotient)


def rem_int(a: Array, b: Array) -> Array:
    return a - div_int(a, b) * b


def bfe(a: Array, start: Array, length: Array) -> Array:
    """Bit field; of a signed array filled with the field's highest bit (or the number's, past its end)."""
    bits = 8 * a.dtype.itemsize
    unsigned = a.view(u32 if bits == 32 else u64)
    start, length = start & u32(0xFF), length & u32(0xFF)
    low = shift_right(unsigned, start)
    ones = ~unsigned.dtype.type(0)
    mask = ~shift_left(np.full_like(unsigned, ones), np.broadcast_to(length, unsigned.shape))
    field = low & mask
    if a.dtype.kind == "u":
        return field
    last = np.minimum(start + length - u32(1), u32(bits - 1))
    sign = (shift_right(unsigned, last) & unsigned.dtype.type(1)).astype(bool) & (length != 0)
    return np.where(sign, field | ~mask, field).view(a.dtype)


def bfi(a: Array, b: Array, start: Array, length: Array) -> Array:
    """The lowest ``length`` bits of a put into b at ``start``."""
    start, length = start & u32(0xFF), length & u32(0xFF)
    ones = np.full(np.broadcast_shapes(a.shape, b.shape, start.shape, length.shape), ~a.dtype.type(0))
    mask = shift_left(~shift_left(ones, np.broadcast_to(length, ones.shape)), np.broadcast_to(start, ones.shape))
    return (b & ~mask) | (shift_left(a, start) & mask)


def prmt(a: Array, b: Array, selector: Array) -> Array:
    """Four bytes chosen of the eight of b:a; a nibble's highest bit repeats the sign of its byte."""
    both = a.astype(u64) | (b.astype(u64) << u64(32))
    result: Array = np.zeros(1, u32)
    for place in range(4):
        nibble = (selector >> u32(4 * place)) & u32(0xF)
        byte = ((both >> ((nibble & u32(7)).astype(u64) * u64(8))) & u64(0xFF)).astype(u32)
        byte = np.where(nibble & u32(8), np.where(byte & u32(0x80), u32(0xFF), u32(0)), byte)
        result = result | (byte << u32(8 * place))
    return result


def lop3(a: Array, b: Array, c: Array, table: int) -> Array:
    """Any function of three bits by its table."""
    result: Array = np.zeros(1, u32)
    for place in range(8):
        if table >> place & 1:
            result = result | ((a if place & 4 else ~a) & (b if place & 2 else ~b) & (c if place & 1 else ~c))
    return result


def popc(a: Array) -> Array:
    return np.bitwise_count(a).astype(u32)


def clz(a: Array) -> Array:
    bits = 8 * a.dtype.itemsize
    for shift in (1, 2, 4, 8, 16, *([32] if bits == 64 else [])):
        a = a | (a >> a.dtype.type(shift))
    return u32(bits) - popc(a)


def shf(low: Array, high: Array, n: Array, left: bool, wrap: bool) -> Array:
    """Funnel shift of high:low."""
    n = (n & u32(31)) if wrap else np.minimum(n, u32(32))
    both = low.astype(u64) | (high.astype(u64) << u64(32))
    if left:
        return ((both << n.astype(u64)) >> u64(32)).astype(u32)
    return (both >> n.astype(u64)).astype(u32)
