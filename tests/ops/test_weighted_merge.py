"""Merge, unmerge and source map against loops in float64, and the properties that make a merge a merge."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from alt_kernels import Matching, bipartite_soft_matching, source_map, testing, unmerge, weighted_merge
from alt_kernels.reference import unmerge as unmerge_reference
from alt_kernels.reference import weighted_merge as reference
from alt_kernels.testing import plan_groups
from alt_kernels.types import Impl

pytestmark = pytest.mark.usefixtures("poisoned_empty")

DTYPES = testing.FLOAT_DTYPES
# (batch, tokens, r, num_protected, destinations, channels): a ViT's block; few large groups; all into one token;
# the identity, by r = 0 and with every token protected; one channel, and numbers of channels off every vector width.
PLANS = [
    (2, 197, 8, 1, None, 96),
    (3, 61, 29, 1, 2, 67),
    (2, 33, 16, 0, 1, 16),
    (1, 2, 1, 0, None, 1),
    (2, 9, 0, 1, None, 3),
    (2, 7, 0, 7, None, 130),
]


def make_plan(batch: int, tokens: int, r: int, num_protected: int, destinations: int | None) -> Matching:
    return testing.random_plan(batch, tokens, r, seed=1, num_protected=num_protected, destinations=destinations)


def loops(x: Tensor, matching: Matching, size: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x' and s' in float64, the sum of the magnitudes behind each x', and the number of tokens of each row."""
    x = x.double()
    weight = torch.ones(x.shape[:2], dtype=torch.float64) if size is None else size.double()
    shape = (x.shape[0], matching.offsets.shape[1] - 1)
    merged = torch.zeros(*shape, x.shape[2], dtype=torch.float64)
    magnitude, total, count = torch.zeros_like(merged), torch.zeros(shape, dtype=torch.float64), torch.zeros(shape)
    for b, rows in enumerate(plan_groups(matching)):
        for j, tokens in enumerate(rows):
            count[b, j] = len(tokens)
            total[b, j] = sum(float(weight[b, i]) for i in tokens)
            if len(tokens) == 1:
                merged[b, j] = x[b, tokens[0]]
                continue
            if total[b, j] == 0:
                continue
            for i in tokens:
                merged[b, j] += weight[b, i] * x[b, i] / total[b, j]
                magnitude[b, j] += weight[b, i] * x[b, i].abs() / total[b, j]
    return merged, total, magnitude, count


def merge_band(merged: Tensor, magnitude: Tensor, count: Tensor, dtype: torch.dtype, size: Tensor | None) -> Tensor:
    """n products, n additions of them, n of the sizes, one division; then one rounding to ``dtype``.

    The sum of the sizes is a float32, whatever the dtype of x: exact for whole numbers, else off by its gamma_n.
    """
    terms = 2 * int(count.max()) + 2
    band = testing.store_band(merged, magnitude, terms, dtype)
    if size is not None and not bool((size == size.round()).all()):
        band = band + testing.gamma(int(count.max()) + 1, torch.float32) * magnitude
    return torch.where(count[..., None] == 1, 0.0, band)  # a copy is exact


def sizes(kind: str, batch: int, tokens: int) -> Tensor | None:
    return None if kind == "none" else testing.random_size(batch, tokens, seed=2, integer=kind == "whole")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["none", "whole", "fractional"])
@pytest.mark.parametrize("shape", PLANS, ids=str)
def test_equal_to_the_definition(
    impl: Impl, dtype: torch.dtype, kind: str, shape: tuple[int, int, int, int, int | None, int]
) -> None:
    *plan_shape, channels = shape
    matching = make_plan(*plan_shape)  # type: ignore[arg-type]
    x = torch.randn(shape[0], shape[1], channels).to(dtype)
    size = sizes(kind, shape[0], shape[1])
    merged, merged_size = weighted_merge(x, matching, size, impl=impl)
    truth, total, magnitude, count = loops(x, matching, size)
    assert (merged.dtype, merged_size.dtype) == (dtype, torch.float32)
    testing.assert_error_band(merged, truth, merge_band(truth, magnitude, count, dtype, size), name="x")
    exact = kind != "fractional"
    size_band = 0.0 if exact else testing.gamma(int(count.max()), torch.float32) * total
    testing.assert_error_band(merged_size, total, size_band, name="size")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["none", "whole", "fractional"])
def test_twelve_layers_conserve_the_sums(impl: Impl, dtype: torch.dtype, kind: str) -> None:
    """Sums of s and of s x over the tokens of an image stay, to rounding, from 197 tokens down to 11.

    A merge that forgets to divide, or to multiply, is right while all sizes are 1 and wrong from the second layer on.
    """
    x = (1 + torch.randn(2, 197, 24)).to(dtype)
    size = sizes(kind, 2, 197)
    weight = torch.ones(2, 197, dtype=torch.float64) if size is None else size.double()
    mass, moment = weight.sum(1), (weight[..., None] * x.double()).sum(1)
    mass_band, moment_band = torch.zeros_like(mass), torch.zeros_like(moment)
    sizes_are_exact = kind != "fractional"
    for layer in range(12):
        metric = testing.exact_metric(2, x.shape[1], seed=layer, duplicates=0.5)
        matching = bipartite_soft_matching(metric, min(16, (x.shape[1] - 1) // 2), impl=impl)
        truth, total, magnitude, count = loops(x, matching, size)
        moment_band += (merge_band(truth, magnitude, count, dtype, size) * total[..., None]).sum(1)
        if not sizes_are_exact:  # the returned size is a rounded sum, and weighs x' in the next layer
            wrong = torch.where(count > 1, testing.gamma(int(count.max()), torch.float32) * total, 0.0)
            mass_band += wrong.sum(1)
            moment_band += (wrong[..., None] * magnitude).sum(1)
        x, size = weighted_merge(x, matching, size, impl=impl)
    assert x.shape[1] == 11
    assert size is not None
    assert size.max() > 12
    testing.assert_error_band(size.double().sum(1), mass, 1.01 * mass_band, name="sum of s")
    total_moment = (size.double()[..., None] * x.double()).sum(1)
    testing.assert_error_band(total_moment, moment, 1.01 * moment_band, name="sum of s x")


def awkward(batch: int, tokens: int, channels: int, dtype: torch.dtype) -> Tensor:
    """Numbers, zeros of both signs, infinities and NaNs with payloads: any bit pattern of the dtype."""
    integers = {8: torch.int64, 4: torch.int32, 2: torch.int16}[dtype.itemsize]
    limit = torch.iinfo(integers)
    pattern = torch.randint(limit.min, limit.max, (batch, tokens, channels), dtype=integers)
    x = pattern.view(dtype).clone()
    x[:, ::3, ::4] = -0.0
    x[:, ::5, 1] = -torch.inf
    nan = torch.full((1,), torch.nan, dtype=dtype).view(integers) + 3  # a NaN with a payload of its own
    x[:, 1::4, 2] = nan.view(dtype)
    return x


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_rows_of_one_token_are_copied_bit_for_bit(impl: Impl, dtype: torch.dtype, weighted: bool) -> None:
    """x * s / s rounds (it changed 8 % of bfloat16 elements), and 0 / 0 or inf / inf would not be x at all."""
    matching = testing.random_plan(2, 41, 10, seed=3, destinations=4)
    x = awkward(2, 41, 37, dtype)
    size = None
    if weighted:
        size = 1 + 8 * torch.rand(2, 41)
        size[:, 0], size[:, 3], size[0, 5], size[1, 5] = 0.0, 1e-30, torch.inf, torch.nan
    merged, merged_size = weighted_merge(x, matching, size, impl=impl)
    seen = 0
    for b, rows in enumerate(plan_groups(matching)):
        for j, tokens in enumerate(rows):
            if len(tokens) == 1:
                testing.assert_same_bits(merged[b, j], x[b, tokens[0]])
                if size is not None:
                    testing.assert_same_bits(merged_size[b, j], size[b, tokens[0]])
                seen += 1
    assert seen > 40
    grad = awkward(2, 31, 37, dtype)
    leaf = torch.zeros_like(x, requires_grad=True)
    weighted_merge(leaf, matching, size, impl=impl).x.backward(grad)
    assert leaf.grad is not None
    if impl != "reference":  # autograd of the reference adds zeros from its other branch: values, not bits
        for b, rows in enumerate(plan_groups(matching)):
            for j, tokens in enumerate(rows):
                if len(tokens) == 1:
                    testing.assert_same_bits(leaf.grad[b, tokens[0]], grad[b, j])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_groups_without_weight(impl: Impl, dtype: torch.dtype) -> None:
    """Sizes that sum to zero: zeros and zero gradient, not 0 / 0; their neighbours are not touched."""
    matching = testing.plan_from_pairs(6, 0, [{0: 1, 2: 1}, {0: 3, 4: 3}])
    size = torch.tensor([[0.0, 0, 0, 1, 2, 3], [1, 0, 0, 0, 2, 5]])
    x = torch.randn(2, 6, 5).to(dtype).requires_grad_()
    merged, merged_size = weighted_merge(x, matching, size, impl=impl)
    truth, total, magnitude, count = loops(x.detach(), matching, size)
    assert total[0, 1] == 0
    assert not merged[0, 1].any()
    testing.assert_error_band(merged.detach(), truth, merge_band(truth, magnitude, count, dtype, size))
    testing.assert_error_band(merged_size, total, 0.0)
    merged.sum().backward()
    expected = torch.tensor([[0, 0, 0, 1, 1, 1], [1 / 3, 1, 1, 0, 2 / 3, 1]], dtype=torch.float64)
    assert x.grad is not None
    band = testing.store_band(expected, expected, 4, dtype)[..., None]
    testing.assert_error_band(x.grad, expected[..., None].expand(2, 6, 5), band)


def test_sizes_count_beyond_256_whatever_x_is(impl: Impl) -> None:
    """256 + 1 = 256 in bfloat16: 600 tokens that end as one count 600."""
    x, size = torch.randn(1, 600, 8).to(torch.bfloat16), None
    while x.shape[1] > 1:
        tokens = x.shape[1]
        matching = testing.random_plan(1, tokens, tokens // 2, seed=tokens, num_protected=0, destinations=1)
        x, size = weighted_merge(x, matching, size, impl=impl)
    assert size is not None
    assert size.dtype == torch.float32
    assert size.item() == 600.0


# Unmerge and source map


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", PLANS, ids=str)
def test_unmerge_copies_rows_back(impl: Impl, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    matching = make_plan(*shape[:5])  # type: ignore[arg-type]
    x = awkward(shape[0], shape[1] - shape[2], shape[5] + 2, dtype)
    y = unmerge(x, matching, impl=impl)
    for b, rows in enumerate(plan_groups(matching)):
        for j, tokens in enumerate(rows):
            testing.assert_same_bits(y[b, tokens], x[b, j].expand(len(tokens), -1))


def test_unmerge_of_merge_is_constant_on_a_region(impl: Impl) -> None:
    x = torch.randn(2, 50, 6, dtype=torch.float64)
    matching = testing.random_plan(2, 50, 20, seed=4, destinations=5)
    y = unmerge(weighted_merge(x, matching, impl=impl).x, matching, impl=impl)
    for b, rows in enumerate(plan_groups(matching)):
        for tokens in rows:
            mean = x[b, tokens].mean(0)
            torch.testing.assert_close(y[b, tokens], mean.expand(len(tokens), -1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_of_unmerge_is_the_sum_of_each_group(impl: Impl, dtype: torch.dtype) -> None:
    matching = testing.random_plan(3, 61, 29, seed=5, destinations=2)
    x = torch.randn(3, 32, 19).to(dtype).requires_grad_()
    grad = torch.randn(3, 61, 19).to(dtype)
    unmerge(x, matching, impl=impl).backward(grad)
    expected, magnitude = torch.zeros(3, 32, 19).double(), torch.zeros(3, 32, 19).double()
    for b, rows in enumerate(plan_groups(matching)):
        for j, tokens in enumerate(rows):
            expected[b, j], magnitude[b, j] = grad[b, tokens].double().sum(0), grad[b, tokens].double().abs().sum(0)
    assert x.grad is not None
    if impl == "reference":
        # PyTorch's own derivative of gather adds in the dtype of x, and the reference leaves it at that
        band = 30 * testing.roundoff(dtype) * magnitude
    else:
        band = testing.store_band(expected, magnitude, 30, dtype)
    testing.assert_error_band(x.grad, expected, band)


def chain(layers: int, tokens: int, r: int) -> list[Matching]:
    return [testing.random_plan(2, tokens - r * layer, r, seed=layer) for layer in range(layers)]


@pytest.mark.parametrize("layers", [1, 3, 12])
def test_source_map_is_the_chain_of_unmerges(impl: Impl, layers: int) -> None:
    plans = chain(layers, 197, 8)
    rows = 197 - 8 * layers
    number = torch.arange(rows, dtype=torch.float32)[None, :, None].expand(2, -1, 1)
    onehot = torch.eye(rows).expand(2, -1, -1)
    for matching in reversed(plans):
        number, onehot = unmerge(number, matching, impl=impl), unmerge(onehot, matching, impl=impl)
    source = source_map(plans)
    assert source.dtype == torch.int64
    assert torch.equal(source, number[..., 0].long())
    assert torch.equal(source, onehot.argmax(-1))


def test_source_map_agrees_with_the_sizes(impl: Impl) -> None:
    """As many tokens lead to a row as its size says, and their mean is the row."""
    plans = chain(12, 197, 8)
    x = torch.randn(2, 197, 3, dtype=torch.float64)
    merged, size = x, None
    for matching in plans:
        merged, size = weighted_merge(merged, matching, size, impl=impl)
    source = source_map(plans)
    assert size is not None
    for b in range(2):
        assert torch.equal(source[b].bincount(minlength=101).float(), size[b])
        for j in range(101):
            torch.testing.assert_close(merged[b, j], x[b, source[b] == j].mean(0), rtol=1e-12, atol=1e-12)


# Gradients


@pytest.mark.parametrize("impl", ["reference", "auto"])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradcheck(impl: Impl, weighted: bool) -> None:
    matching = testing.random_plan(2, 11, 5, seed=6, destinations=2)
    size = testing.random_size(2, 11, seed=7) if weighted else None
    x = torch.randn(2, 11, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: weighted_merge(x, matching, size, impl=impl).x, (x,))
    y = torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: unmerge(y, matching, impl=impl), (y,))
    assert torch.autograd.gradgradcheck(lambda y: unmerge(y, matching, impl=impl).square(), (y,))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["none", "whole", "fractional"])
def test_gradient_is_the_share_of_the_size(impl: Impl, dtype: torch.dtype, kind: str) -> None:
    """dx_i = s_i / S_j dx'_j, rounded once."""
    matching = testing.random_plan(3, 61, 29, seed=8, destinations=3)
    size = sizes(kind, 3, 61)
    x = torch.randn(3, 61, 35).to(dtype).requires_grad_()
    grad = torch.randn(3, 32, 35).to(dtype)
    weighted_merge(x, matching, size, impl=impl).x.backward(grad)
    expected = torch.zeros(3, 61, 35).double()
    weight = torch.ones(3, 61).double() if size is None else size.double()
    for b, rows in enumerate(plan_groups(matching)):
        for j, tokens in enumerate(rows):
            for i in tokens:
                expected[b, i] = weight[b, i] / weight[b, tokens].sum() * grad[b, j].double()
    assert x.grad is not None
    assert x.grad.dtype == dtype
    band = testing.store_band(expected, expected.abs(), 4, dtype)
    if size is not None and kind == "fractional":  # S is a float32 sum of up to 30 sizes
        band = band + testing.gamma(30, torch.float32) * expected.abs()
    testing.assert_error_band(x.grad, expected, band)


@pytest.mark.parametrize("weighted", [False, True])
def test_backward_formulas_are_the_derivatives(weighted: bool) -> None:
    """The reference's backward functions against autograd of its forwards."""
    plan = testing.random_plan(2, 31, 14, seed=9, destinations=3)
    size = testing.random_size(2, 31, seed=10) if weighted else None
    if size is not None:
        size[0, :20] = 0  # some groups without weight
    x = torch.randn(2, 31, 4, dtype=torch.float64, requires_grad=True)
    merged, merged_size = reference.weighted_merge(x, size, *plan)
    grad = torch.randn_like(merged)
    (by_autograd,) = torch.autograd.grad(merged, x, grad)
    by_formula = reference.weighted_merge_backward(grad, size, merged_size, *plan)
    torch.testing.assert_close(by_formula, by_autograd, rtol=1e-13, atol=1e-13)
    y = torch.randn(2, 17, 4, dtype=torch.float64, requires_grad=True)
    back = unmerge_reference.unmerge(y, *plan)
    grad = torch.randn_like(back)
    (by_autograd,) = torch.autograd.grad(back, y, grad)
    torch.testing.assert_close(unmerge_reference.unmerge_backward(grad, *plan), by_autograd, rtol=1e-13, atol=1e-13)
    for dtype in DTYPES[:3]:  # rounded once, from sums in float32
        low, exact = grad.to(dtype), grad.to(dtype).double()
        found, truth = unmerge_reference.unmerge_backward(low, *plan), unmerge_reference.unmerge_backward(exact, *plan)
        band = testing.store_band(truth, unmerge_reference.unmerge_backward(exact.abs(), *plan), 20, dtype)
        testing.assert_error_band(found, truth, band)


# Layout, emptiness, threads


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "every third element": testing.spread,
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "rows of a longer sequence": lambda x: torch.cat([x, x, x], 1)[:, x.shape[1] : 2 * x.shape[1]],
    "one image repeated": lambda x: x[:1].expand(2, *x.shape[1:]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_any_strides(impl: Impl, dtype: torch.dtype, layout: str) -> None:
    """x, sizes, plan and gradients."""
    change = LAYOUTS[layout]
    inputs = [torch.randn(2, 31, 20).to(dtype), testing.random_size(2, 31, seed=11), *make_plan(2, 31, 12, 1, 4)]
    grads = [torch.randn(2, 19, 20).to(dtype), torch.randn(2, 31, 20).to(dtype)]

    def run(arrange: Callable[[Tensor], Tensor]) -> list[Tensor]:
        x, size, *plan = (arrange(t) for t in inputs)
        matching = Matching(*plan)
        x = x.detach().requires_grad_()
        merged, merged_size = weighted_merge(x, matching, size, impl=impl)
        y = merged.detach().requires_grad_()
        back = unmerge(arrange(y), matching, impl=impl)
        gx = torch.autograd.grad(merged, x, arrange(grads[0]))[0]
        gy = torch.autograd.grad(back, y, arrange(grads[1]))[0]
        return [merged.detach(), merged_size, back.detach(), gx, gy]

    for plain, changed in zip(run(lambda t: change(t).clone().contiguous()), run(change), strict=True):
        testing.assert_same_bits(changed, plain)


@pytest.mark.parametrize(("batch", "tokens"), [(0, 9), (2, 0), (0, 0)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_to_merge(impl: Impl, dtype: torch.dtype, batch: int, tokens: int) -> None:
    matching = bipartite_soft_matching(torch.empty(batch, tokens, 4), tokens // 3, num_protected=0, impl=impl)
    x = torch.empty(batch, tokens, 6, dtype=dtype, requires_grad=True)
    for size in (None, torch.empty(batch, tokens)):
        merged, merged_size = weighted_merge(x, matching, size, impl=impl)
        rows = tokens - tokens // 3
        assert merged.shape == (batch, rows, 6)
        assert merged_size.shape == (batch, rows)
        back = unmerge(merged, matching, impl=impl)
        assert back.shape == torch.autograd.grad(back.sum(), x)[0].shape == x.shape
    assert source_map([matching]).shape == (batch, tokens)


def test_deterministic_at_any_number_of_threads(impl: Impl, threads: Callable[[int], None]) -> None:
    matching = testing.random_plan(8, 197, 90, seed=12, destinations=7)
    size = testing.random_size(8, 197, seed=13)
    data = torch.randn(8, 197, 256)
    found = []
    for count in (1, 2, 1, 2):
        threads(count)
        x = data.clone().requires_grad_()
        merged = weighted_merge(x, matching, size, impl=impl)
        unmerge(merged.x, matching, impl=impl).square().sum().backward()
        assert x.grad is not None
        found.append((merged.x.detach(), merged.size, x.grad))
    for other in found[1:]:
        for left, right in zip(found[0], other, strict=True):
            testing.assert_same_bits(right, left)
