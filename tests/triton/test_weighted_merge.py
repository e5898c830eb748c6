"""Triton's merge, unmerge and their derivatives against the reference in float64, on every branch of the kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from alt_kernels import Matching, testing
from alt_kernels.reference import unmerge as unmerge_reference
from alt_kernels.reference import weighted_merge as reference
from alt_kernels.triton import weighted_merge as kernels

pytestmark = pytest.mark.usefixtures("guarded")

f32, f16, b16 = torch.float32, torch.float16, torch.bfloat16
DTYPES = [f32, f16, b16]
# (batch, tokens, r, num_protected, destinations, channels): a ViT's block; one large group among copies; the identity;
# one channel; more tokens than a tile by one; a width that is no power of two, and one that is.
PLANS = [
    (2, 45, 12, 1, None, 96),
    (1, 33, 16, 0, 1, 67),
    (3, 9, 0, 1, None, 3),
    (2, 7, 3, 1, 2, 1),
    (1, 12, 4, 1, None, 768),
    (1, 19, 2, 1, None, 128),
    (1, 4, 1, 0, None, 2100),
]
KINDS = ["none", "whole", "fractional"]


def make_plan(shape: tuple[Any, ...], seed: int = 1) -> Matching:
    batch, tokens, r, num_protected, destinations = shape[:5]
    return testing.random_plan(batch, tokens, r, seed=seed, num_protected=num_protected, destinations=destinations)


def sizes(kind: str, batch: int, tokens: int) -> Tensor | None:
    return None if kind == "none" else testing.random_size(batch, tokens, seed=2, integer=kind == "whole")


def counts(plan: Matching) -> Tensor:
    return plan.offsets.diff(dim=1)


def size_band(kind: str, plan: Matching) -> float:
    """The relative error of a sum of sizes in float32, in another order than the reference's."""
    return testing.gamma(2 * int(counts(plan).max()), f32) if kind == "fractional" else 0.0


def assert_same(actual: Any, expected: Any) -> None:
    for left, right in zip(actual, expected, strict=True):
        testing.assert_same_bits(left, right)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", PLANS, ids=str)
def test_merge(shape: tuple[Any, ...], kind: str, dtype: torch.dtype, device: torch.device) -> None:
    x = (3 * torch.randn(*shape[:2], shape[5])).to(dtype)
    check_merge(x, make_plan(shape), kind, sizes(kind, *shape[:2]), device)


def check_merge(x: Tensor, plan: Matching, kind: str, size: Tensor | None, device: torch.device) -> None:
    """Inside the band that rounding explains, copies exact, and the same bits twice."""
    dtype = x.dtype
    expected, total = reference.weighted_merge(x.double(), size, *plan)
    magnitude = reference.weighted_merge(x.double().abs(), size, *plan)[0]
    plan_d = [field.to(device) for field in plan]
    size_d = None if size is None else size.to(device)
    merged, merged_size = kernels.weighted_merge(x.to(device), size_d, *plan_d)
    assert merged.dtype == dtype
    count = counts(plan)
    # n products, n sums, a division of two units in the last place; the sum of the sizes beside it.
    band = testing.store_band(expected, magnitude, 2 * int(count.max()) + 4, dtype)
    band = torch.where(count[..., None] == 1, 0.0, band + size_band(kind, plan) * magnitude)
    testing.assert_error_band(merged.cpu(), expected, band, name="merged")
    testing.assert_error_band(merged_size.cpu(), total.double(), size_band(kind, plan) * total.double(), name="size")
    assert_same(kernels.weighted_merge(x.to(device), size_d, *plan_d), (merged, merged_size))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", PLANS[:5], ids=str)
def test_merge_backward(shape: tuple[Any, ...], kind: str, dtype: torch.dtype, device: torch.device) -> None:
    plan = make_plan(shape)
    grad = torch.randn(shape[0], plan.offsets.shape[1] - 1, shape[5]).to(dtype)
    check_merge_backward(grad, plan, sizes(kind, *shape[:2]), device)


def check_merge_backward(grad: Tensor, plan: Matching, size: Tensor | None, device: torch.device) -> None:
    batch, tokens = plan.indices.shape
    merged_size = reference.weighted_merge(torch.zeros(batch, tokens, 1), size, *plan)[1]
    expected = reference.weighted_merge_backward(grad.double(), size, merged_size, *plan)
    plan_d = [field.to(device) for field in plan]
    size_d = None if size is None else size.to(device)
    arguments = (grad.to(device), size_d, merged_size.to(device), *plan_d)
    actual = kernels.weighted_merge_backward(*arguments)
    single = (counts(plan) == 1).gather(1, plan.output_row.long())[..., None]
    band = torch.where(single, 0.0, testing.store_band(expected, expected.abs(), 4, grad.dtype))
    testing.assert_error_band(actual.cpu(), expected, band)
    testing.assert_same_bits(kernels.weighted_merge_backward(*arguments), actual)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", PLANS[:5], ids=str)
def test_unmerge_and_its_derivative(shape: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> None:
    plan = make_plan(shape)
    x = torch.randn(shape[0], plan.offsets.shape[1] - 1, shape[5]).to(dtype)
    check_unmerge(x, torch.randn(*shape[:2], shape[5]).to(dtype), plan, device)


def check_unmerge(x: Tensor, grad: Tensor, plan: Matching, device: torch.device) -> None:
    plan_d = [field.to(device) for field in plan]
    testing.assert_same_bits(kernels.unmerge(x.to(device), *plan_d).cpu(), unmerge_reference.unmerge(x, *plan))
    expected = unmerge_reference.unmerge_backward(grad.double(), *plan)
    magnitude = unmerge_reference.unmerge_backward(grad.double().abs(), *plan)
    actual = kernels.unmerge_backward(grad.to(device), *plan_d)
    band = testing.store_band(expected, magnitude, int(counts(plan).max()), grad.dtype)
    testing.assert_error_band(actual.cpu(), expected, torch.where(counts(plan)[..., None] == 1, 0.0, band))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_of_one_token_are_copied_bit_for_bit(dtype: torch.dtype, device: torch.device) -> None:
    """Signed zeros, infinities, subnormals and the payload of a NaN included, beside rows that merge."""
    plan = testing.random_plan(2, 21, 5, seed=3, destinations=2)
    bits = torch.randint(-(2**15), 2**15, (2, 21, 20), dtype=torch.int16)
    x = bits.view(dtype) if dtype != f32 else torch.randint(-(2**31), 2**31, (2, 21, 20), dtype=torch.int32).view(f32)
    x[:, :, 0], x[:, :, 1], x[:, :, 2] = -0.0, torch.nan, -torch.inf
    size = testing.random_size(2, 21, seed=4).to(device)
    plan_d = [field.to(device) for field in plan]
    single = counts(plan) == 1
    merged, merged_size = kernels.weighted_merge(x.to(device), size, *plan_d)
    own = plan.indices.gather(1, plan.offsets[:, :-1].long()).long()
    image = torch.arange(2)[:, None]
    testing.assert_same_bits(merged.cpu()[single], x[image, own][single])
    back = kernels.weighted_merge_backward(merged, size, merged_size, *plan_d)
    testing.assert_same_bits(back.cpu()[image, own][single], x[image, own][single])
    testing.assert_same_bits(kernels.unmerge_backward(x.to(device), *plan_d).cpu()[single], x[image, own][single])


def test_groups_of_size_zero_and_sizes_that_are_no_numbers(device: torch.device) -> None:
    """Zero sizes give zeros whatever the tokens hold; an infinite or undefined size spoils its own row alone."""
    plan = testing.plan_from_pairs(8, 1, [{2: 3, 4: 3}, {2: 3, 6: 5}])
    size = torch.ones(2, 8)
    size[0, 2:5] = 0.0
    size[1, 2], size[1, 6] = torch.inf, torch.nan
    size[:, 0] = 0.0  # a row of one token: a copy all the same
    x = torch.randn(2, 8, 5)
    x[0, 4] = torch.inf
    plan_d = [field.to(device) for field in plan]
    expected = reference.weighted_merge(x, size, *plan)
    merged, merged_size = (t.cpu() for t in kernels.weighted_merge(x.to(device), size.to(device), *plan_d))
    torch.testing.assert_close(merged, expected[0], rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(merged_size, expected[1], rtol=0, atol=0, equal_nan=True)
    row = int(plan.output_row[0, 3])
    assert (merged[0, row] == 0).all()
    grad = torch.randn_like(merged)
    back = kernels.weighted_merge_backward(grad.to(device), size.to(device), merged_size.to(device), *plan_d).cpu()
    torch.testing.assert_close(
        back, reference.weighted_merge_backward(grad, size, merged_size, *plan), rtol=0, atol=0, equal_nan=True
    )


def test_strided_arguments(device: torch.device) -> None:
    """Windows into larger tensors full of NaN, transposed ones, and a gradient that is one number expanded."""
    plan = testing.random_plan(2, 13, 4, seed=5)
    size = testing.random_size(2, 13, seed=6, integer=True)
    x = torch.randn(2, 13, 24)
    dense = [field.to(device) for field in plan]
    spread = [testing.spread(field).to(device) for field in plan]
    expected = kernels.weighted_merge(x.to(device), size.to(device), *dense)
    window = torch.full((2, 15, 31), torch.nan)[:, 1:-1, 3:-4]
    window.copy_(x)
    for strided in (window.to(device), x.transpose(1, 2).contiguous().to(device).transpose(1, 2), testing.spread(x)):
        assert not strided.is_contiguous() or device.type != "cpu"
        assert_same(kernels.weighted_merge(strided.to(device), testing.spread(size).to(device), *spread), expected)
        testing.assert_same_bits(
            kernels.unmerge_backward(strided.to(device), *spread), kernels.unmerge_backward(x.to(device), *dense)
        )
    one = torch.tensor(0.5, device=device).expand(2, 9, 24)
    arguments = (size.to(device), expected[1])
    testing.assert_same_bits(
        kernels.weighted_merge_backward(one, *arguments, *spread),
        kernels.weighted_merge_backward(one.contiguous(), *arguments, *dense),
    )
    testing.assert_same_bits(
        kernels.unmerge(expected[0].mT.contiguous().mT, *spread), kernels.unmerge(expected[0], *dense)
    )


def test_what_lies_behind_the_plan_is_not_part_of_it(device: torch.device) -> None:
    """The next numbers in memory are such as a plan of one more row would hold: a tile ends where the image does."""
    tokens, channels = 7, 6
    plan = testing.plan_from_pairs(tokens, 1, [{2: 3, 4: 3}])
    size = testing.random_size(1, tokens, seed=7, integer=True)
    x = torch.randn(1, tokens, channels)

    def followed(value: Tensor, *more: float) -> Tensor:
        longer = torch.cat([value, torch.tensor([more], dtype=value.dtype)], 1)
        return longer.to(device)[:, : value.shape[1]]

    behind = (
        followed(plan.indices, 0, 0),
        followed(plan.offsets, tokens + 1, tokens + 2),
        followed(plan.output_row, 0, 0),
    )
    dense = [field.to(device) for field in plan]
    x, size = x.to(device), size.to(device)
    merged, merged_size = kernels.weighted_merge(x, size, *dense)
    assert_same(kernels.weighted_merge(x, followed(size.cpu(), 3.0), *behind), (merged, merged_size))
    back = (kernels.weighted_merge_backward(merged, size, merged_size, *plan_) for plan_ in (behind, dense))
    testing.assert_same_bits(*back)
    testing.assert_same_bits(kernels.unmerge(merged, *behind), kernels.unmerge(merged, *dense))
    testing.assert_same_bits(kernels.unmerge_backward(x, *behind), kernels.unmerge_backward(x, *dense))


def test_three_merges_in_a_row_conserve_what_they_merge(device: torch.device) -> None:
    """The sum of size times token is the same after every layer, the sizes being above 1 from the second on."""
    x, size = torch.randn(2, 40, 8, device=device), None
    total = x.sum(1)
    for layer, r in enumerate((9, 8, 7)):
        plan = [field.to(device) for field in testing.random_plan(2, x.shape[1], r, seed=layer, destinations=3)]
        x, size = kernels.weighted_merge(x, size, *plan)
        assert (size.sum(1) == 40).all()
        torch.testing.assert_close((size[..., None] * x).sum(1), total, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("shape", [(0, 5, 4), (2, 0, 4), (2, 5, 0)], ids=str)
def test_nothing_to_merge(shape: tuple[int, int, int], device: torch.device) -> None:
    """No image, no token, no channel: empty results of the right shape, sizes where there are any."""
    batch, tokens, channels = shape
    plan = testing.identity_plan(batch, tokens)
    if tokens == 5 and batch:
        plan = testing.plan_from_pairs(5, 1, [{2: 3}] * batch)
    plan_d = [field.to(device) for field in plan]
    x = torch.randn(shape, device=device)
    merged, merged_size = kernels.weighted_merge(x, None, *plan_d)
    rows = plan.offsets.shape[1] - 1
    assert merged.shape == (batch, rows, channels)
    testing.assert_same_bits(merged_size.cpu(), counts(plan).to(f32))
    assert kernels.weighted_merge_backward(merged, None, merged_size, *plan_d).shape == shape
    assert kernels.unmerge(merged, *plan_d).shape == shape
    assert kernels.unmerge_backward(x, *plan_d).shape == merged.shape


def test_double_is_refused(device: torch.device) -> None:
    plan = [field.to(device) for field in testing.identity_plan(1, 3)]
    x = torch.randn(1, 3, 2, dtype=torch.float64, device=device)
    for call in (
        lambda: kernels.weighted_merge(x, None, *plan),
        lambda: kernels.unmerge(x, *plan),
        lambda: kernels.unmerge_backward(x, *plan),
        lambda: kernels.weighted_merge_backward(x, None, x[..., 0].float(), *plan),
    ):
        with pytest.raises(TypeError, match="got float64"):
            call()
