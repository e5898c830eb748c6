"""The corrected interpreter computes bfloat16 as torch does, bit for bit, before anything is concluded from it."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from alt_kernels import testing

from .conftest import DEVICE

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="on a GPU the kernels are compiled, not interpreted")

b16, f32 = torch.bfloat16, torch.float32


@triton.jit
def convert(x_ptr, y_ptr, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(y_ptr + at, tl.load(x_ptr + at).to(y_ptr.dtype.element_ty))


@triton.jit
def arithmetic(x_ptr, y_ptr, out_ptr, N: tl.constexpr):
    at = tl.arange(0, N)
    x, y = tl.load(x_ptr + at), tl.load(y_ptr + at)
    tl.store(out_ptr + at, x * y)
    tl.store(out_ptr + N + at, x + y)
    tl.store(out_ptr + 2 * N + at, x - y)
    tl.store(out_ptr + 3 * N + at, tl.where(x < y, x, y))


@triton.jit
def product(a_ptr, b_ptr, out_ptr, N: tl.constexpr):
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(out_ptr + at, tl.dot(tl.load(a_ptr + at), tl.load(b_ptr + at)))


@triton.jit
def count_up(out_ptr, stop):
    total = 0
    for i in range(0, stop):
        total += i
    tl.store(out_ptr, total)


def test_conversion_rounds_to_nearest_even(device: torch.device) -> None:
    """Random bit patterns of float32, ties among them: neither truncated nor rounded away from zero."""
    bits = torch.randint(-(2**31), 2**31, (4096,), dtype=torch.int32)
    bits[:1024] = (bits[:1024] & ~0xFFFF) | 0x8000  # half-way between two bfloat16
    x = bits.view(f32)
    x = x[~x.isnan()][:2048].to(device)
    y = torch.empty(2048, dtype=b16, device=device)
    convert[(1,)](x, y, N=2048)
    testing.assert_same_bits(y, x.to(b16))
    back = torch.empty_like(x)
    convert[(1,)](y, back, N=2048)
    testing.assert_same_bits(back, y.float())
    whole = torch.arange(-1024, 1024, dtype=torch.int32, device=device)
    convert[(1,)](whole, y, N=2048)
    testing.assert_same_bits(y, whole.to(b16))


def test_arithmetic_is_of_the_values(device: torch.device) -> None:
    x, y = torch.randn(2, 256, device=device).to(b16)
    out = torch.empty(4, 256, dtype=b16, device=device)
    arithmetic[(1,)](x, y, out, N=256)
    testing.assert_same_bits(out, torch.stack([x * y, x + y, x - y, torch.minimum(x, y)]))


@pytest.mark.parametrize("dtype", [b16, torch.float16], ids=str)
def test_dot_is_of_the_values(dtype: torch.dtype, device: torch.device) -> None:
    """Small whole numbers, so that every order of the sum gives the same."""
    a, b = torch.randint(-8, 9, (2, 32, 32), device=device).to(dtype)
    out = torch.empty(32, 32, device=device)
    product[(1,)](a, b, out, N=32)
    testing.assert_same_bits(out, a.float() @ b.float())


def test_a_loop_with_a_bound_known_at_run_time(device: torch.device) -> None:
    out = torch.empty(1, dtype=torch.int32, device=device)
    count_up[(1,)](out, 10)
    assert out.item() == 45
