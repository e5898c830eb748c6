"""merge_layer_norm: the merge of a residual sum and the LayerNorm of its result, in mixed dtypes, with gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from alt_kernels import Matching, merge_layer_norm, testing, weighted_merge
from alt_kernels.reference import merge_layer_norm as reference
from alt_kernels.types import Impl

pytestmark = pytest.mark.usefixtures("poisoned_empty")

f64, f32, f16, b16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
# x, residual, weight, bias. Under autocast the stream is float32 and the branch bfloat16; a half-precision model
# may keep its LayerNorms in float32; the rest is what promotion says.
DTYPES = [
    (f32, f32, f32, f32),
    (f64, f64, f64, f64),
    (f16, f16, f16, f16),
    (b16, b16, b16, b16),
    (f32, b16, f32, f32),
    (f32, f16, f32, f32),
    (b16, f32, f32, b16),
    (b16, b16, f32, f32),
    (b16, f16, f64, f16),
    (f64, b16, f32, f64),
]
# (batch, tokens, r, num_protected, destinations, channels)
SHAPES = [(2, 61, 20, 1, 3, 96), (1, 33, 16, 0, 1, 67), (2, 9, 0, 1, None, 5), (3, 8, 3, 2, None, 1)]


def make_plan(batch: int, tokens: int, r: int, num_protected: int, destinations: int | None) -> Matching:
    return testing.random_plan(batch, tokens, r, seed=1, num_protected=num_protected, destinations=destinations)


def group_matrix(matching: Matching, size: Tensor | None) -> tuple[Tensor, Tensor]:
    """The plan as a dense float64 ``[B, N', N]`` matrix of weights s_i / S_j, and the number of tokens per row."""
    batch, tokens = matching.indices.shape
    dense = torch.zeros(batch, matching.offsets.shape[1] - 1, tokens, dtype=f64)
    for b in range(batch):
        for j in range(dense.shape[1]):
            row = matching.indices[b, matching.offsets[b, j] : matching.offsets[b, j + 1]].long()
            dense[b, j, row] = 1.0 if size is None else size[b, row].double()
    return dense / dense.sum(-1, keepdim=True), (dense != 0).sum(-1)


def norm_band(stored: Tensor, truth: Tensor, weight: Tensor | None, eps: float, dtype: torch.dtype) -> Tensor:
    """Returns the error band of a LayerNorm in two passes over C channels, with sums in ``dtype``'s accumulator.

    The mean is off by gamma_C mean|x|, in units of sigma by D. So x - mean is off by D, sigma by D^2 / 2 and
    gamma_2C relatively; then comes the scale. A one-pass variance E[x^2] - E[x]^2 is far outside for large means.
    """
    y = stored.double()
    channels = y.shape[-1]
    rstd = (y.var(-1, correction=0, keepdim=True) + eps).rsqrt()
    h = (y - y.mean(-1, keepdim=True)) * rstd
    off = (testing.gamma(channels, dtype) * y.abs().mean(-1, keepdim=True) + 0.0) * rstd
    wrong = off + h.abs() * (off.square() + testing.gamma(2 * channels + 8, dtype))
    wrong = wrong * (1.0 if weight is None else weight.double().abs())
    return testing.store_band(truth, truth.abs(), 3, dtype) + wrong


def parameters(channels: int, weight: torch.dtype | None, bias: torch.dtype | None) -> tuple[Tensor | None, ...]:
    return (
        None if weight is None else (1 + 0.3 * torch.randn(channels)).to(weight),
        None if bias is None else (0.3 * torch.randn(channels)).to(bias),
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtypes", DTYPES, ids=lambda d: "-".join(str(t).removeprefix("torch.") for t in d))
def test_equal_to_the_definition(
    impl: Impl, dtypes: tuple[torch.dtype, ...], shape: tuple[int, int, int, int, int | None, int]
) -> None:
    *plan_shape, channels = shape
    matching = make_plan(*plan_shape)  # type: ignore[arg-type]
    size = testing.random_size(*shape[:2], seed=2, integer=True)
    x = (2 * torch.randn(*shape[:2], channels)).to(dtypes[0])
    residual = torch.randn(*shape[:2], channels).to(dtypes[1])
    weight, bias = parameters(channels, *dtypes[2:])
    merged, normed, merged_size = merge_layer_norm(x, residual, matching, size, weight, bias, 1e-5, impl=impl)
    dtype = torch.promote_types(x.dtype, residual.dtype)
    assert merged.dtype == normed.dtype == dtype
    assert merged_size.dtype == f32

    dense, count = group_matrix(matching, size)
    summed = x.double() + residual.double()
    magnitude = dense @ (x.double().abs() + residual.double().abs())
    band = testing.store_band(dense @ summed, magnitude, 2 * int(count.max()) + 3, dtype)
    testing.assert_error_band(merged, dense @ summed, band, name="x")
    truth = F.layer_norm(
        merged.double(),
        (channels,),
        None if weight is None else weight.double(),
        None if bias is None else bias.double(),
        1e-5,
    )
    testing.assert_error_band(normed, truth, norm_band(merged, truth, weight, 1e-5, dtype), name="normed")
    testing.assert_same_bits(merged_size, weighted_merge(x, matching, size, impl=impl).size)


def test_one_token_rows_are_the_rounded_sum(impl: Impl) -> None:
    """x + residual in float32, rounded once to the result: no weighting, whatever the size."""
    matching = testing.random_plan(2, 41, 10, seed=3, destinations=4)
    size = testing.random_size(2, 41, seed=4)
    for a, b in ((f32, f32), (b16, b16), (f16, f16), (f32, b16), (b16, f16)):
        x, residual = torch.randn(2, 41, 33).to(a), torch.randn(2, 41, 33).to(b)
        merged = merge_layer_norm(x, residual, matching, size, None, None, impl=impl).x
        expected = (x.float() + residual.float()).to(merged.dtype)
        single = matching.offsets.diff(dim=1) == 1
        own = matching.indices.gather(1, matching.offsets[:, :-1].long()).long()
        copied = expected.gather(1, own[..., None].expand(-1, -1, 33))
        testing.assert_same_bits(merged[single], copied[single])


@pytest.mark.parametrize("impl", ["reference", "auto"])
@pytest.mark.parametrize("weighted", [False, True])
def test_equal_to_merge_then_layer_norm(impl: Impl, weighted: bool) -> None:
    """In float64, where rounding does not blur it: the two public functions one after the other, gradients included."""
    matching = testing.random_plan(3, 50, 20, seed=5, destinations=3)
    size = testing.random_size(3, 50, seed=6) if weighted else None
    inputs = [torch.randn(3, 50, 40, dtype=f64), torch.randn(3, 50, 40, dtype=f64)]
    inputs += [torch.randn(40, dtype=f64), torch.randn(40, dtype=f64)]
    leaves, others = ([t.clone().requires_grad_() for t in inputs] for _ in range(2))
    x, residual, weight, bias = leaves
    merged, normed, merged_size = merge_layer_norm(x, residual, matching, size, weight, bias, 1e-3, impl=impl)
    y, expected_size = weighted_merge(others[0] + others[1], matching, size, impl=impl)
    z = F.layer_norm(y, (40,), others[2], others[3], 1e-3)
    for left, right in ((merged, y), (normed, z), (merged_size, expected_size)):
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)
    grads = torch.randn_like(y), torch.randn_like(z)
    torch.autograd.backward((merged, normed), grads)
    torch.autograd.backward((y, z), grads)
    for left, right in zip(leaves, others, strict=True):
        torch.testing.assert_close(left.grad, right.grad, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", testing.FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("mean", [30.0, 3000.0])
def test_large_means(impl: Impl, dtype: torch.dtype, mean: float) -> None:
    """Two passes, not E[x^2] - E[x]^2; the second of these would lose every digit."""
    if dtype in (f16, b16):
        mean = min(mean, 100.0)  # beyond it the stored x' has no spread left
    x = (mean + torch.randn(2, 20, 64, dtype=f64)).to(dtype)
    matching = testing.random_plan(2, 20, 4, seed=7)
    merged, normed, _ = merge_layer_norm(x, torch.zeros_like(x), matching, None, None, None, impl=impl)
    truth = F.layer_norm(merged.double(), (64,), eps=1e-5)
    testing.assert_error_band(normed, truth, norm_band(merged, truth, None, 1e-5, dtype))


def test_constant_rows_give_the_bias(impl: Impl) -> None:
    """Variance zero: eps keeps the quotient finite."""
    x = torch.full((2, 9, 16), 3.0)
    bias = torch.randn(16)
    normed = merge_layer_norm(x, x, testing.random_plan(2, 9, 3, seed=8), None, None, bias, impl=impl).normed
    testing.assert_same_bits(normed, bias.expand(2, 6, 16).contiguous())


@pytest.mark.parametrize("eps", [1e-12, 1e-5, 1.0])
@pytest.mark.parametrize("which", ["weight", "bias", "neither"])
def test_optional_parameters_and_eps(impl: Impl, which: str, eps: float) -> None:
    matching = testing.random_plan(2, 12, 4, seed=9)
    x, residual = torch.randn(2, 12, 10), torch.randn(2, 12, 10)
    weight, bias = parameters(10, f32 if which == "weight" else None, f32 if which == "bias" else None)
    merged, normed, _ = merge_layer_norm(x, residual, matching, None, weight, bias, eps, impl=impl)
    double = [None if t is None else t.double() for t in (weight, bias)]
    truth = F.layer_norm(merged.double(), (10,), *double, eps)
    testing.assert_error_band(normed, truth, norm_band(merged, truth, weight, eps, f32))


# Gradients


@pytest.mark.parametrize("impl", ["reference", "auto"])
@pytest.mark.parametrize("which", ["both", "weight", "bias", "neither"])
def test_gradcheck(impl: Impl, which: str) -> None:
    matching = testing.random_plan(2, 9, 4, seed=10, destinations=2)
    size = testing.random_size(2, 9, seed=11)
    x, residual = (torch.randn(2, 9, 3, dtype=f64, requires_grad=True) for _ in range(2))
    weight = torch.randn(3, dtype=f64, requires_grad=True) if which in ("both", "weight") else None
    bias = torch.randn(3, dtype=f64, requires_grad=True) if which in ("both", "bias") else None

    def run(x: Tensor, residual: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        return merge_layer_norm(x, residual, matching, size, weight, bias, 1e-2, impl=impl)[:2]

    leaves = [t for t in (x, residual, weight, bias) if t is not None]
    assert torch.autograd.gradcheck(run, leaves)


@pytest.mark.parametrize("dtypes", DTYPES, ids=lambda d: "-".join(str(t).removeprefix("torch.") for t in d))
def test_gradients_of_every_dtype(impl: Impl, dtypes: tuple[torch.dtype, ...]) -> None:
    """Against float64 formulas from the stored x'. The gradient of the sum is rounded once to the dtype of x', its
    share s_i / S_j once more, and once to the dtype of the input."""
    matching = testing.random_plan(2, 50, 20, seed=12, destinations=3)
    size = testing.random_size(2, 50, seed=13, integer=True)
    channels = 48
    x, residual = torch.randn(2, 50, channels).to(dtypes[0]), torch.randn(2, 50, channels).to(dtypes[1])
    weight, bias = parameters(channels, *dtypes[2:])
    leaves = [t.requires_grad_() for t in (x, residual, weight, bias) if t is not None]
    merged, normed, _ = merge_layer_norm(x, residual, matching, size, weight, bias, 1e-5, impl=impl)
    dtype = merged.dtype
    dm, dn = torch.randn(2, 30, channels).to(dtype), torch.randn(2, 30, channels).to(dtype)
    found = torch.autograd.grad((merged, normed), leaves, (dm, dn))
    for leaf, grad in zip(leaves, found, strict=True):
        assert grad.dtype == leaf.dtype

    assert weight is not None
    y, dm, dn = merged.detach().double(), dm.double(), dn.double()
    rstd = (y.var(-1, correction=0, keepdim=True) + 1e-5).rsqrt()
    h = (y - y.mean(-1, keepdim=True)) * rstd
    g = dn * weight.detach().double()
    along = rstd * (g - g.mean(-1, keepdim=True) - h * (g * h).mean(-1, keepdim=True))
    size_of = rstd * (g.abs() + g.abs().mean(-1, keepdim=True) + h.abs() * (g * h).abs().mean(-1, keepdim=True))
    back = group_matrix(matching, size)[0].transpose(1, 2)  # [B, N, N']
    truth, magnitude = back @ (dm + along), back @ (dm.abs() + size_of)
    rounded = back @ testing.store_band(dm + along, dm.abs() + size_of, 6 * channels, dtype)
    if impl == "reference":  # autograd rounds what comes from dm and from the norm one by one
        rounded = rounded + 4 * testing.roundoff(dtype) * magnitude
    for name, grad in zip(("x", "residual"), found[:2], strict=True):
        band = rounded + testing.store_band(truth, truth.abs() + rounded, 3, dtype)
        band = band + testing.store_band(truth, 0.0, 1, grad.dtype)
        testing.assert_error_band(grad, truth, band, name=name)
    terms = 60 + 3 * channels
    for name, grad, product in (("weight", found[2], dn * h), ("bias", found[3], dn)):
        truth, magnitude = product.sum((0, 1)), product.abs().sum((0, 1))
        accumulator = testing.accumulate_dtype(dtype)
        band = testing.store_band(truth, magnitude, terms, accumulator)
        testing.assert_error_band(grad, truth, band + testing.store_band(truth, 0.0, 1, grad.dtype), name=name)


@pytest.mark.parametrize("used", ["x", "normed"])
def test_one_of_the_outputs_may_go_unused(impl: Impl, used: str) -> None:
    matching = testing.random_plan(2, 12, 5, seed=14, destinations=2)
    x = torch.randn(2, 12, 6, dtype=f64, requires_grad=True)
    weight = torch.randn(6, dtype=f64, requires_grad=True)
    out = merge_layer_norm(x, torch.zeros_like(x), matching, None, weight, None, impl=impl)
    grad = torch.randn(2, 7, 6, dtype=f64)
    gx, gw = torch.autograd.grad(getattr(out, used), (x, weight), grad, materialize_grads=True)
    leaf, parameter = x.detach().requires_grad_(), weight.detach().requires_grad_()
    y = weighted_merge(leaf, matching, impl="reference").x
    z = F.layer_norm(y, (6,), parameter)
    expected = torch.autograd.grad(y if used == "x" else z, (leaf, parameter), grad, materialize_grads=True)
    torch.testing.assert_close((gx, gw), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("which", ["both", "weight", "bias", "neither"])
def test_backward_formula_is_the_derivative(which: str) -> None:
    """The reference's backward function against autograd of its forward, also where some groups have no weight."""
    plan = testing.random_plan(2, 31, 14, seed=15, destinations=3)
    size = testing.random_size(2, 31, seed=16)
    size[0, :20] = 0
    x, residual = (torch.randn(2, 31, 5, dtype=f64, requires_grad=True) for _ in range(2))
    weight = torch.randn(5, dtype=f64, requires_grad=True) if which in ("both", "weight") else None
    bias = torch.randn(5, dtype=f64, requires_grad=True) if which in ("both", "bias") else None
    merged, normed, merged_size, mean, rstd = reference.merge_layer_norm(x, residual, size, *plan, weight, bias, 1e-3)
    dm, dn = torch.randn_like(merged), torch.randn_like(normed)
    leaves = [t for t in (x, residual, weight, bias) if t is not None]
    by_autograd = torch.autograd.grad((merged, normed), leaves, (dm, dn))
    with torch.no_grad():
        grad, grad_weight, grad_bias = reference.merge_layer_norm_backward(
            dm, dn, merged, mean, rstd, weight, bias is not None, size, merged_size, *plan
        )
    by_formula = [grad, grad]
    for given, value in ((weight, grad_weight), (bias, grad_bias)):
        if given is None:
            assert value.shape == (0,)
        else:
            by_formula.append(value)
    for left, right in zip(by_formula, by_autograd, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-11, atol=1e-11)


# Layout, emptiness, threads


@pytest.mark.parametrize(
    "change", [testing.spread, lambda t: t.transpose(0, -1).contiguous().transpose(0, -1)], ids=["wide", "T"]
)
@pytest.mark.parametrize("dtypes", [(f32, f32, f32, f32), (f32, b16, f32, f32), (b16, b16, f32, b16)], ids=str)
def test_any_strides(impl: Impl, dtypes: tuple[torch.dtype, ...], change: Callable[[Tensor], Tensor]) -> None:
    x, residual = torch.randn(2, 31, 20).to(dtypes[0]), torch.randn(2, 31, 20).to(dtypes[1])
    weight, bias = parameters(20, *dtypes[2:])
    inputs = [x, residual, weight, bias, testing.random_size(2, 31, seed=17), *make_plan(2, 31, 12, 1, 4)]
    out = torch.promote_types(*dtypes[:2])
    grads = [torch.randn(2, 19, 20).to(out), torch.randn(2, 19, 20).to(out)]

    def run(arrange: Callable[[Tensor], Tensor]) -> list[Tensor]:
        leaves = [arrange(t).detach().requires_grad_() for t in inputs[:4] if t is not None]
        size, *plan = (arrange(t) for t in inputs[4:] if t is not None)
        x, residual, weight, bias = leaves
        result = merge_layer_norm(x, residual, Matching(*plan), size, weight, bias, impl=impl)
        found = torch.autograd.grad(result[:2], leaves, [arrange(g) for g in grads])
        return [t.detach() for t in (*result, *found)]

    for plain, changed in zip(run(lambda t: t), run(change), strict=True):
        # other strides may mean another order of summation, in the implementations that leave it to PyTorch
        band = 2 * testing.store_band(plain, plain.abs().max(), 100, plain.dtype)
        testing.assert_error_band(changed, plain.double(), band)


@pytest.mark.parametrize(("batch", "tokens"), [(0, 9), (2, 0), (0, 0)])
def test_nothing_to_merge(impl: Impl, batch: int, tokens: int) -> None:
    plan = testing.random_plan(max(batch, 1), tokens, tokens // 3, seed=18, num_protected=0)
    matching = Matching(*(field[:batch] for field in plan))
    x = torch.empty(batch, tokens, 6, requires_grad=True)
    weight, bias = torch.ones(6, requires_grad=True), torch.zeros(6, requires_grad=True)
    for size in (None, torch.empty(batch, tokens)):
        out = merge_layer_norm(x, x, matching, size, weight, bias, impl=impl)
        rows = tokens - tokens // 3
        assert out.x.shape == out.normed.shape == (batch, rows, 6)
        assert out.size.shape == (batch, rows)
        gx, gw, gb = torch.autograd.grad(out.normed.sum() + out.x.sum(), (x, weight, bias))
        assert gx.shape == x.shape
        assert not gw.any()
        assert not gb.any()


def test_deterministic_at_any_number_of_threads(impl: Impl, threads: Callable[[int], None]) -> None:
    matching = testing.random_plan(8, 197, 90, seed=19, destinations=7)
    size = testing.random_size(8, 197, seed=20)
    data = [torch.randn(8, 197, 128), torch.randn(8, 197, 128), torch.randn(128), torch.randn(128)]
    found: dict[int, list[list[Tensor]]] = {1: [], 2: []}
    for count in (1, 2, 1, 2):
        threads(count)
        leaves = [t.clone().requires_grad_() for t in data]
        out = merge_layer_norm(leaves[0], leaves[1], matching, size, leaves[2], leaves[3], impl=impl)
        grads = torch.autograd.grad((out.x.square().sum() + out.normed.pow(3).sum()), leaves)
        found[count].append([t.detach() for t in (*out, *grads)])
    for runs in found.values():
        for left, right in zip(*runs, strict=True):
            testing.assert_same_bits(right, left)
    # the sums over all rows that weight and bias get may be split by the number of threads; no other result may
    for left, right in zip(found[1][0][:5], found[2][0][:5], strict=True):
        testing.assert_same_bits(right, left)
