"""Proportional attention: sizes as repeated keys, masks, every dtype against float64 with a derived band."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from alt_kernels import proportional_attention, testing
from alt_kernels.reference import proportional_attention as reference
from alt_kernels.types import Impl

pytestmark = pytest.mark.usefixtures("poisoned_empty")

DTYPES = testing.FLOAT_DTYPES
# One key; off and on vector widths; 197 tokens of a ViT-B/16 and the 192 that r = 5 leaves (192 % 128 == 64 gave NaN in
# a library's kernel); just past a tile of 256.
LENGTHS = [1, 2, 31, 64, 192, 197, 257]


class Truth(NamedTuple):
    """Results in float64 and what rounding explains of each."""

    out: Tensor
    out_band: Tensor
    grads: tuple[Tensor, Tensor, Tensor]
    grad_bands: tuple[Tensor, Tensor, Tensor]


def truth_of(q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, scale: float, grad: Tensor) -> Truth:
    """Attention by its formula in float64, with u of the dtype and v of its accumulator:

    A score is a sum of D products and the bias: off by e = gamma_(D+4) (|q| |k| scale + |log s| + |score|), and P
    relatively by 2 e, as is its sum. P, dS and the output are rounded to the dtype before they are used again, which
    costs u each, or half a subnormal spacing, or all of it where exp flushes; sums over keys and queries accumulate.
    """
    dtype, depth = q.dtype, q.shape[-1]
    u, info = testing.roundoff(dtype), torch.finfo(dtype)
    tiny = max(info.smallest_normal * info.eps, torch.finfo(testing.accumulate_dtype(dtype)).smallest_normal)
    q, k, v, grad = (t.detach().double() for t in (q, k, v, grad))
    bias = torch.zeros(k.shape[0], k.shape[2], dtype=torch.float64) if size is None else size.double().log()
    bias = bias[:, None, None, :]
    scores = q @ k.transpose(-1, -2) * scale + bias
    live = scores > -torch.inf
    p = torch.where(live, scores.softmax(-1).nan_to_num(0.0), 0.0)
    product = q.abs() @ k.abs().transpose(-1, -2) * abs(scale)
    off = testing.gamma(depth + 4, dtype) * torch.where(live, 2 * product + 2 * bias.abs(), 0.0)
    # the row's largest error times two is the bound of a softmax; 8 u32 for exp itself
    relative = torch.expm1(2 * off.amax(-1, keepdim=True) + testing.gamma(8 + k.shape[2], dtype))
    wrong_p = torch.where(live, p * (relative + u) + tiny, 0.0)

    out = p @ v
    out_band = testing.store_band(out, wrong_p @ v.abs(), 1, dtype) + wrong_p @ v.abs()

    dp = grad @ v.transpose(-1, -2)
    delta = (grad * out).sum(-1, keepdim=True)
    ds = p * (dp - delta)
    long = testing.gamma(k.shape[2] + q.shape[2] + depth + 8, dtype)
    wrong_delta = (grad.abs() * (out_band + u * out.abs() + long * out.abs())).sum(-1, keepdim=True)
    wrong_dp = (long + u) * (grad.abs() @ v.abs().transpose(-1, -2))
    wrong_ds = wrong_p * (dp - delta).abs() + (p + wrong_p) * (wrong_delta + wrong_dp) + u * ds.abs() + tiny * live
    grads = (ds @ k * scale, ds.transpose(-1, -2) @ q * scale, p.transpose(-1, -2) @ grad)
    wrong = (
        (wrong_ds + long * ds.abs()) @ k.abs() * abs(scale),
        (wrong_ds + long * ds.abs()).transpose(-1, -2) @ q.abs() * abs(scale),
        (wrong_p + (long + u) * p).transpose(-1, -2) @ grad.abs(),
    )
    bands = tuple(w + testing.store_band(g, w, 1, dtype) for g, w in zip(grads, wrong, strict=True))
    return Truth(out, out_band, grads, bands)  # type: ignore[arg-type]


def draw(
    dtype: torch.dtype, batch: int = 2, heads: int = 3, queries: int = 37, keys: int = 37, depth: int = 16
) -> tuple[Tensor, Tensor, Tensor]:
    q = torch.randn(batch, heads, queries, depth).to(dtype)
    k, v = (torch.randn(batch, heads, keys, depth).to(dtype) for _ in range(2))
    return q, k, v


def run(
    q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, grad: Tensor, impl: Impl, scale: float | None = None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    leaves = [t.detach().requires_grad_() for t in (q, k, v)]
    out = proportional_attention(*leaves, size, scale=scale, impl=impl)
    return out.detach(), torch.autograd.grad(out, leaves, grad)


def check(
    q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, impl: Impl, scale: float | None = None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run forward and backward and hold every result against float64."""
    grad = torch.randn(q.shape).to(q.dtype)
    out, grads = run(q, k, v, size, grad, impl, scale)
    truth = truth_of(q, k, v, size, 1 / math.sqrt(q.shape[-1]) if scale is None else scale, grad)
    assert out.dtype == q.dtype
    testing.assert_error_band(out, truth.out, truth.out_band, name="out")
    for name, found, expected, band in zip("qkv", grads, truth.grads, truth.grad_bands, strict=True):
        assert found.dtype == q.dtype
        testing.assert_error_band(found, expected, band, name=f"gradient of {name}")
    return out, grads


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("keys", LENGTHS)
@pytest.mark.parametrize("kind", ["none", "whole", "fractional"])
def test_equal_to_the_formula(impl: Impl, dtype: torch.dtype, keys: int, kind: str) -> None:
    size = None if kind == "none" else testing.random_size(2, keys, seed=keys, integer=kind == "whole", high=60)
    check(*draw(dtype, heads=2, queries=keys, keys=keys, depth=32), size, impl)


def test_the_band_bites() -> None:
    """The band passes the reference in half precision and fails each plausible mistake."""
    q, k, v = draw(torch.bfloat16)
    size = testing.random_size(2, 37, seed=0)
    grad = torch.randn(q.shape).to(q.dtype)
    truth = truth_of(q, k, v, size, 0.25, grad)
    wrong = {
        "sizes ignored": proportional_attention(q, k, v),
        "sizes not in logarithm": proportional_attention(q, k, v, size.exp()),
        "another image's sizes": proportional_attention(q, k, v, size.flip(0)),
        "scale 1 / D": proportional_attention(q, k, v, size, scale=1 / 16),
        "log s rounded to bfloat16 and twice": proportional_attention(q, k, v, size.square()),
    }
    testing.assert_error_band(proportional_attention(q, k, v, size), truth.out, truth.out_band)
    for name, out in wrong.items():
        with pytest.raises(AssertionError, match="outside the band"):
            testing.assert_error_band(out, truth.out, truth.out_band, name=name)


# Properties


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("queries", [5, 40])
def test_whole_sizes_are_repeated_keys(impl: Impl, dtype: torch.dtype, queries: int) -> None:
    """Plain attention over every key and value repeated s times, none for s = 0: outputs and gradients.

    What a key of size s gets is the sum over its copies. The oracle is PyTorch's plain attention, which knows no
    sizes, in float64 from the same rounded inputs.
    """
    q, k, v = draw(dtype, queries=queries, keys=40)
    size = torch.randint(0, 6, (2, 40)).float()
    grad = torch.randn(q.shape).to(dtype)
    out, grads = run(q, k, v, size, grad, impl)
    bands = truth_of(q, k, v, size, 0.25, grad)
    for image in range(2):
        one = slice(image, image + 1)
        leaves = [t[one].double().requires_grad_() for t in (q, k, v)]
        many = [leaves[0], *(t.repeat_interleave(size[image].long(), dim=2) for t in leaves[1:])]
        plain = torch.nn.functional.scaled_dot_product_attention(*many)
        assert many[1].shape[2] == size[image].sum()
        expected = torch.autograd.grad(plain, leaves, grad[one].double())
        testing.assert_error_band(out[one], plain.detach(), bands.out_band[one], name="out")
        for name, found, right, band in zip("qkv", grads, expected, bands.grad_bands, strict=True):
            testing.assert_error_band(found[one], right, band[one], name=f"gradient of {name}")
        gone = size[image] == 0
        assert gone.any()
        assert not grads[1][image, :, gone].any()
        assert not grads[2][image, :, gone].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_is_no_size(impl: Impl, dtype: torch.dtype) -> None:
    q, k, v = draw(dtype)
    grad = torch.randn(q.shape).to(dtype)
    with_ones, without = (run(q, k, v, size, grad, impl) for size in (torch.ones(2, 37), None))
    truth = truth_of(q, k, v, None, 0.25, grad)
    bands = (truth.out_band, *truth.grad_bands)
    for left, right, band in zip((with_ones[0], *with_ones[1]), (without[0], *without[1]), bands, strict=True):
        testing.assert_error_band(left, right.double(), 2 * band)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_common_factor_of_the_sizes_cancels(impl: Impl, dtype: torch.dtype) -> None:
    """Sizes are relative: 1/32, 1 and 1024 times them give the same weights; so do very large and small ones."""
    q, k, v = draw(dtype)
    size = testing.random_size(2, 37, seed=3)
    truth = truth_of(q, k, v, size, 0.25, q)
    for factor in (2.0**-100, 1 / 32, 1.0, 1024.0, 2.0**100):
        out = proportional_attention(q, k, v, size * factor, impl=impl)
        extra = testing.gamma(8, dtype) * abs(math.log(factor)) * (truth.out.abs() + v.double().abs().amax())
        testing.assert_error_band(out, truth.out, truth.out_band + extra)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_size_zero_masks_a_key(impl: Impl, dtype: torch.dtype) -> None:
    """Equal to leaving the key out, whatever finite number it holds; and it gets no gradient."""
    q, k, v = draw(dtype, keys=50)
    size = testing.random_size(2, 50, seed=4)
    size[:, ::3] = 0
    keep = torch.arange(50) % 3 != 0
    k[:, :, ::3], v[:, :, ::3] = 50.0, 1000.0
    out, grads = check(q, k, v, size, impl)
    assert not grads[1][:, :, ::3].any()
    assert not grads[2][:, :, ::3].any()
    left_out = proportional_attention(q, k[:, :, keep], v[:, :, keep], size[:, keep], impl=impl)
    truth = truth_of(q, k[:, :, keep], v[:, :, keep], size[:, keep], 0.25, q)
    testing.assert_error_band(out, left_out.double(), 2 * truth.out_band)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("keys", [1, 8, 37, 600])
def test_all_keys_masked_gives_zeros(impl: Impl, dtype: torch.dtype, keys: int) -> None:
    """In one image of two; not NaN, forward or backward, and the other image is as ever."""
    q, k, v = draw(dtype, keys=keys)
    size = testing.random_size(2, keys, seed=5)
    size[0] = 0
    out, grads = check(q, k, v, size, impl)
    assert not out[0].any()
    assert out[1].all()
    for grad in grads:
        assert not grad[0].any()
    assert grads[2][1].any()


@pytest.mark.parametrize("keys", [0, 7])
def test_no_keys_or_all_masked_log_sum_exp(keys: int) -> None:
    """-inf in every implementation: what a later merging of partial results needs."""
    q, k, v = draw(torch.float32, queries=4, keys=keys)
    size = torch.zeros(2, keys)
    out, logsumexp = reference.proportional_attention(q, k, v, size, 0.25)
    assert not out.any()
    assert (logsumexp == -torch.inf).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 0.02, -0.3, 0.0, 7])
def test_scale(impl: Impl, dtype: torch.dtype, scale: float) -> None:
    check(*draw(dtype, keys=20), testing.random_size(2, 20, seed=6), impl, scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("queries", "keys"), [(1, 197), (197, 1), (64, 31), (31, 64), (50, 513)])
def test_queries_and_keys_of_different_number(impl: Impl, dtype: torch.dtype, queries: int, keys: int) -> None:
    check(*draw(dtype, queries=queries, keys=keys), testing.random_size(2, keys, seed=7), impl)


@pytest.mark.parametrize("depth", [1, 3, 64, 80])
def test_head_dimensions(impl: Impl, depth: int) -> None:
    for dtype in DTYPES:
        check(*draw(dtype, depth=depth), testing.random_size(2, 37, seed=8), impl)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_logits(impl: Impl, dtype: torch.dtype) -> None:
    """Hundreds to thousands, where exp overflows unless the largest is subtracted: finite, and the softmax a choice."""
    for factor in (10.0, 60.0):
        q, k, v = draw(dtype)
        out, _ = check(q * factor, k * 4, v, testing.random_size(2, 37, seed=9), impl)
        assert out.isfinite().all()


# Gradients


@pytest.mark.parametrize("impl", ["reference", "auto"])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradcheck(impl: Impl, weighted: bool) -> None:
    leaves = [t.requires_grad_() for t in draw(torch.float64, queries=4, keys=5, heads=2, depth=3)]
    size = testing.random_size(2, 5, seed=10) if weighted else None
    if size is not None:
        size[0, 2] = 0
    assert torch.autograd.gradcheck(lambda q, k, v: proportional_attention(q, k, v, size, scale=0.7, impl=impl), leaves)


@pytest.mark.parametrize("masked", [False, True])
def test_backward_formula_is_the_derivative(masked: bool) -> None:
    """The reference's backward function against autograd of its forward."""
    leaves = [t.requires_grad_() for t in draw(torch.float64, queries=9, keys=14)]
    size = testing.random_size(2, 14, seed=11)
    if masked:
        size[0], size[1, 3] = 0, 0
    out, logsumexp = reference.proportional_attention(*leaves, size, 0.3)
    grad = torch.randn_like(out)
    by_autograd = torch.autograd.grad(out, leaves, grad)
    with torch.no_grad():
        by_formula = reference.proportional_attention_backward(grad, *leaves, size, out, logsumexp, 0.3)
    torch.testing.assert_close(by_formula, by_autograd, rtol=1e-12, atol=1e-13)
    for dtype in DTYPES[:3]:
        q, k, v, low = (t.detach().to(dtype) for t in (*leaves, grad))
        out, logsumexp = reference.proportional_attention(q, k, v, size, 0.3)
        truth = truth_of(q, k, v, size, 0.3, low)
        found = reference.proportional_attention_backward(low, q, k, v, size, out, logsumexp, 0.3)
        for left, right, band in zip(found, truth.grads, truth.grad_bands, strict=True):
            testing.assert_error_band(left, right, band)


def test_only_the_gradients_that_are_asked_for(impl: Impl) -> None:
    q, k, v = draw(torch.float64)
    size = testing.random_size(2, 37, seed=12)
    grad = torch.randn_like(q)
    _, expected = run(q, k, v, size, grad, impl)
    for which in range(3):
        leaves = [t.clone().requires_grad_(i == which) for i, t in enumerate((q, k, v))]
        proportional_attention(*leaves, size, impl=impl).backward(grad)
        for i, leaf in enumerate(leaves):
            if i == which:
                torch.testing.assert_close(leaf.grad, expected[i], rtol=1e-12, atol=1e-13)
            else:
                assert leaf.grad is None


# Layout, emptiness, threads


def packed(layout: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Views as hosts make them; B = 2, H = 3, N = 29, D = 16."""
    if layout == "qkv of a block [B, N, 3, H, D]":
        return torch.randn(2, 29, 3, 3, 16).to(dtype).permute(2, 0, 3, 1, 4).unbind(0)  # type: ignore[return-value]
    if layout == "qkv of nn.MultiheadAttention [N, B, 3 C]":
        parts = torch.randn(29, 2, 3 * 48).to(dtype).chunk(3, dim=-1)
        return tuple(t.reshape(29, 2, 3, 16).permute(1, 2, 0, 3) for t in parts)  # type: ignore[return-value]
    if layout == "one head repeated":
        return tuple(t[:, :1].expand(-1, 3, -1, -1) for t in draw(dtype, queries=29, keys=29))  # type: ignore[return-value]
    change = (
        testing.spread if layout == "no stride of one" else lambda t: t.transpose(0, 3).contiguous().transpose(0, 3)
    )
    return tuple(change(t) for t in draw(dtype, queries=29, keys=29))  # type: ignore[return-value]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "layout",
    [
        "qkv of a block [B, N, 3, H, D]",
        "qkv of nn.MultiheadAttention [N, B, 3 C]",
        "one head repeated",
        "no stride of one",
        "transposed",
    ],
)
def test_any_strides(impl: Impl, dtype: torch.dtype, layout: str) -> None:
    q, k, v = packed(layout, dtype)
    assert not q.is_contiguous()
    size = testing.spread(testing.random_size(2, 29, seed=13))
    check(q, k, v, size, impl)
    grad = testing.spread(torch.randn(q.shape).to(dtype))
    out, grads = run(q, k, v, size, grad, impl)
    truth = truth_of(q, k, v, size, 0.25, grad)
    testing.assert_error_band(out, truth.out, truth.out_band)
    for found, expected, band in zip(grads, truth.grads, truth.grad_bands, strict=True):
        testing.assert_error_band(found, expected, band)


def test_a_gradient_without_strides(impl: Impl) -> None:
    """out.sum() sends an expanded one back."""
    q, k, v = draw(torch.float32)
    _, expected = run(q, k, v, None, torch.ones_like(q), impl)
    leaves = [t.requires_grad_() for t in (q, k, v)]
    found = torch.autograd.grad(proportional_attention(*leaves, impl=impl).sum(), leaves)
    for left, right in zip(found, expected, strict=True):
        testing.assert_same_bits(left, right)


@pytest.mark.parametrize(
    ("batch", "heads", "queries", "keys"), [(0, 3, 5, 5), (2, 0, 5, 5), (2, 3, 0, 5), (2, 3, 5, 0), (0, 0, 0, 0)]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_to_attend(impl: Impl, dtype: torch.dtype, batch: int, heads: int, queries: int, keys: int) -> None:
    """No images, heads or queries: nothing comes back. No keys: zeros, as when all are masked."""
    q, k, v = draw(dtype, batch, heads, queries, keys)
    for size in (None, torch.ones(batch, keys)):
        out, grads = run(q, k, v, size, torch.ones_like(q), impl)
        assert out.shape == q.shape
        assert not out.any()
        for grad, leaf in zip(grads, (q, k, v), strict=True):
            assert grad.shape == leaf.shape
            assert not grad.any()


def test_images_do_not_see_each_other(impl: Impl) -> None:
    q, k, v = draw(torch.float32, batch=3)
    size = testing.random_size(3, 37, seed=14)
    q[1, :, 0] = math.nan
    size[2] = 0
    together = proportional_attention(q, k, v, size, impl=impl)
    for image in (0, 1):
        one = slice(image, image + 1)
        alone = proportional_attention(q[one], k[one], v[one], size[one], impl=impl)
        torch.testing.assert_close(together[one], alone, rtol=1e-5, atol=1e-6, equal_nan=True)
    assert together[1, :, 0].isnan().all()
    assert together[1, :, 1:].isfinite().all()


def test_the_same_at_any_number_of_threads(impl: Impl, threads: Callable[[int], None]) -> None:
    q, k, v = draw(torch.float32, batch=4, queries=100, keys=100)
    size = testing.random_size(4, 100, seed=15)
    grad = torch.randn_like(q)
    found = []
    for count in (1, 1, 2):
        threads(count)
        out, grads = run(q, k, v, size, grad, impl)
        found.append((out, *grads))
    for left, right in zip(found[0], found[1], strict=True):
        testing.assert_same_bits(right, left)
    for left, right in zip(found[0], found[2], strict=True):  # PyTorch's kernels, PyTorch's split of the work
        torch.testing.assert_close(right, left, rtol=1e-5, atol=1e-6)
