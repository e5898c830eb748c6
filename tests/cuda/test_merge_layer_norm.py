"""Merge + LayerNorm and its derivative in CUDA C++ against the reference in float64, on every launch branch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from alt_kernels import testing
from alt_kernels.reference import merge_layer_norm as reference
from alt_kernels.reference import weighted_merge as merge_reference

from ..triton.test_merge_layer_norm import DTYPES, EPS, PLANS, backward_inputs, doubled, inputs, moved, name, norm_band
from . import emulation
from .conftest import Place

pytestmark = pytest.mark.usefixtures("poisoned_empty")

f32 = torch.float32
# Beside those of Triton's tests: two, four and eight vectors per thread; eight warps per row; several rows per block.
SHAPES = [*PLANS, (1, 5, 1, 1, None, 512), (1, 5, 2, 0, 1, 1024), (2, 3, 1, 1, None, 2048)]
WIDE = [(1, 3, 1, 1, None, 4096), (1, 3, 1, 1, None, 8192), (1, 3, 1, 1, None, 4100)]


def forward(place: Place, values: dict[str, Any]) -> tuple[Tensor, ...]:
    return place.ops.merge_layer_norm_cuda(*moved(values, place.device).values())


def backward(place: Place, values: dict[str, Any]) -> tuple[Tensor, ...]:
    return place.ops.merge_layer_norm_cuda_backward(*moved(values, place.device).values())


@pytest.mark.parametrize("dtypes", DTYPES, ids=name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward(shape: tuple[Any, ...], dtypes: tuple[torch.dtype | None, ...], place: Place) -> None:
    check_forward(place, inputs(shape, dtypes, sized=shape[5] != 67), shape)


@pytest.mark.parametrize("shape", WIDE, ids=str)
def test_wide_rows(shape: tuple[Any, ...], place: Place) -> None:
    check_forward(place, inputs(shape, DTYPES[0]), shape)
    check_backward(place, inputs(shape, DTYPES[2]), shape)


def check_forward(place: Place, values: dict[str, Any], shape: tuple[Any, ...]) -> None:
    plan = [values[key] for key in ("indices", "offsets", "output_row")]
    dtype = torch.promote_types(values["x"].dtype, values["residual"].dtype)
    results = forward(place, values)
    merged, normed, merged_size, mean, rstd = (t.cpu() for t in results)
    assert merged.dtype == normed.dtype == dtype
    assert mean.dtype == rstd.dtype == merged_size.dtype == f32

    x, residual, size = values["x"].double(), values["residual"].double(), values["size"]
    expected, total = merge_reference.weighted_merge(x + residual, size, *plan)
    magnitude = merge_reference.weighted_merge(x.abs() + residual.abs(), size, *plan)[0]
    terms = 2 * int(plan[1].diff(dim=1).max()) + 6
    testing.assert_error_band(merged, expected, testing.store_band(expected, magnitude, terms, dtype), name="x")
    testing.assert_same_bits(merged_size, total)

    channels = (shape[5],)
    weight, bias = (None if values[key] is None else values[key].double() for key in ("weight", "bias"))
    truth = F.layer_norm(merged.double(), channels, weight, bias, EPS)
    testing.assert_error_band(normed, truth, norm_band(merged, truth, weight, dtype), name="normed")
    y = merged.double()
    testing.assert_error_band(mean, y.mean(-1), testing.gamma(shape[5] + 2, f32) * y.abs().mean(-1), name="mean")
    true_rstd = (y.var(-1, correction=0) + EPS).rsqrt()
    band = norm_band(merged, torch.ones_like(y), None, f32).amax(-1) * true_rstd
    testing.assert_error_band(rstd, true_rstd, band, name="rstd")
    for again, first in zip(forward(place, values), results, strict=True):
        testing.assert_same_bits(again, first)


@pytest.mark.parametrize("dtypes", DTYPES, ids=name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_backward(shape: tuple[Any, ...], dtypes: tuple[torch.dtype | None, ...], place: Place) -> None:
    check_backward(place, inputs(shape, dtypes, sized=shape[5] != 67), shape)


def check_backward(place: Place, arguments: dict[str, Any], shape: tuple[Any, ...]) -> None:
    values = backward_inputs(arguments)
    results = backward(place, values)
    grad, grad_weight, grad_bias = (t.cpu() for t in results)
    truth, true_weight, true_bias = reference.merge_layer_norm_backward(**doubled(values))
    dtype, channels = values["merged"].dtype, shape[5]
    assert grad.dtype == dtype
    assert grad_weight.dtype == grad_bias.dtype == f32

    # The magnitudes of the terms: |dm|, |g|, its mean, and h times the mean of |g h|, all but the first times rstd.
    wide = doubled(values)
    h = (wide["merged"] - wide["mean"][..., None]).abs() * wide["rstd"][..., None]
    dn = wide["grad_normed"].abs()
    g = dn if wide["weight"] is None else dn * wide["weight"].abs()
    along = (g + g.mean(-1, keepdim=True) + h * (g * h).mean(-1, keepdim=True)) * wide["rstd"][..., None]
    plan = (values["indices"], values["offsets"], values["output_row"])
    spread = merge_reference.weighted_merge_backward(
        wide["grad_merged"].abs() + along, values["size"], values["merged_size"], *plan
    )
    band = testing.store_band(truth, spread, channels + 16, dtype) + testing.roundoff(dtype) * spread
    testing.assert_error_band(grad, truth, band, name="grad")

    rows = dn.shape[0] * dn.shape[1]
    for what, value, true, terms in (
        ("grad_weight", grad_weight, true_weight, dn * h if values["weight"] is not None else None),
        ("grad_bias", grad_bias, true_bias, dn if values["has_bias"] else None),
    ):
        if terms is None:
            assert value.shape == (0,)
        else:
            allowed = testing.gamma(rows + 8, f32) * terms.sum((0, 1)) + torch.finfo(f32).tiny
            testing.assert_error_band(value, true, allowed, name=what)
    for again, before in zip(backward(place, values), results, strict=True):
        testing.assert_same_bits(again, before)


def test_more_rows_than_all_blocks_take_at_once(place: Place) -> None:
    """Several rows a warp and as many partial sums as there are; whole numbers, so that every order gives the same."""
    values = backward_inputs(inputs((4, 290, 20, 1, None, 776), DTYPES[0]))
    assert values["merged"][..., 0].numel() > 2 * 132 * 4
    values["grad_normed"] = torch.randint(-8, 9, values["merged"].shape).float()
    grad_bias = backward(place, values)[2].cpu()
    testing.assert_same_bits(grad_bias, values["grad_normed"].sum((0, 1)))


def test_rows_of_one_token_are_the_rounded_sum(place: Place) -> None:
    """x + residual in float32, rounded once, whatever the size."""
    for dtypes in DTYPES[:5]:
        values = inputs((2, 33, 12, 1, 2, 40), dtypes)
        values["size"] = testing.random_size(2, 33, seed=4)
        merged = forward(place, values)[0].cpu()
        expected = (values["x"].float() + values["residual"].float()).to(merged.dtype)
        single = values["offsets"].diff(dim=1) == 1
        own = values["indices"].gather(1, values["offsets"][:, :-1].long()).long()
        testing.assert_same_bits(merged[single], expected[torch.arange(2)[:, None], own][single])


def test_a_group_of_size_zero_gives_zeros(place: Place) -> None:
    """Whatever its tokens hold; its norm is the bias. A row of one token keeps its value, of size zero or not."""
    values = inputs((1, 11, 4, 1, 1, 16), DTYPES[0])
    group = values["output_row"][0] == int(values["output_row"][0].mode().values)
    values["size"][0, group] = 0.0
    values["size"][0, 0] = 0.0
    values["x"][0, group] = torch.inf
    merged, normed, *_ = (t.cpu() for t in forward(place, values))
    row = int(values["output_row"][0, group][0])
    assert (merged[0, row] == 0).all()
    testing.assert_same_bits(normed[0, row], values["bias"])
    testing.assert_same_bits(merged[0, 0], (values["x"] + values["residual"])[0, 0])

    values["x"][0, group] = 1.0
    grad = backward(place, backward_inputs(values))[0].cpu()
    assert (grad[0, group] == 0).all()


def test_a_nan_stays_in_its_row(place: Place) -> None:
    values = inputs((2, 12, 4, 1, None, 64), DTYPES[2])
    values["x"][1, 3, 5] = torch.nan
    merged, normed, *_ = (t.cpu() for t in forward(place, values))
    row = int(values["output_row"][1, 3])
    expected = torch.zeros(merged.shape[:2], dtype=torch.bool)
    expected[1, row] = True
    assert torch.equal(merged.isnan().any(-1), expected)
    assert torch.equal(normed.isnan().all(-1), expected)


def test_strided_and_unaligned_arguments(place: Place) -> None:
    """A window into a larger tensor, a transposed stream, an expanded gradient, a weight off its 16 bytes."""
    values = inputs((2, 15, 4, 1, None, 24), DTYPES[0])
    window = torch.full((2, 17, 30), torch.nan)[:, 1:-1, 2:-4]
    window.copy_(values["residual"])
    shifted = torch.full((25,), torch.nan)[1:]
    shifted.copy_(values["weight"])
    keys = ("size", "indices", "offsets", "output_row", "bias")
    dense = moved(values, place.device)
    expected = place.ops.merge_layer_norm_cuda(*dense.values())
    loose = {**dense, **{key: testing.spread(dense[key]) for key in keys}}
    loose |= {"x": dense["x"].mT.contiguous().mT}
    if place.emulated:  # a move to another device would make them dense
        loose |= {"residual": window, "weight": shifted}
    for actual, first in zip(place.ops.merge_layer_norm_cuda(*loose.values()), expected, strict=True):
        # One branch adds up in another order than the other.
        torch.testing.assert_close(actual, first, rtol=1e-5, atol=1e-5)

    back = moved(backward_inputs(values), place.device)
    back["grad_normed"] = torch.tensor(0.25, device=place.device).expand(back["merged"].shape)
    loose = {key: testing.spread(v) if isinstance(v, Tensor) and key != "grad_normed" else v for key, v in back.items()}
    for actual, first in zip(
        place.ops.merge_layer_norm_cuda_backward(*loose.values()),
        place.ops.merge_layer_norm_cuda_backward(*back.values()),
        strict=True,
    ):
        testing.assert_same_bits(actual, first)


def test_whatever_the_order_of_the_threads(order: int) -> None:
    emulation.library()
    place = Place(getattr(torch.ops, emulation.NAMESPACE), torch.device("cpu"), True)
    for channels in (768, 1280):
        values = inputs((2, 9, 3, 1, 1, channels), DTYPES[2])
        derivative = backward_inputs(values)
        results = [*forward(place, values), *backward(place, derivative)]
        emulation.library().alt_emulation_order(0)
        expected = [*forward(place, values), *backward(place, derivative)]
        emulation.library().alt_emulation_order(order)
        for actual, first in zip(results, expected, strict=True):
            testing.assert_same_bits(actual, first)


@pytest.mark.parametrize(("batch", "tokens"), [(0, 5), (2, 0)])
def test_nothing_to_merge(batch: int, tokens: int, place: Place) -> None:
    """Empty results; the gradients of weight and bias are zeros."""
    plan = [field.to(place.device) for field in testing.identity_plan(batch, tokens)]
    x, weight = torch.randn(batch, tokens, 6, device=place.device), torch.ones(6, device=place.device)
    merged, normed, merged_size, mean, rstd = place.ops.merge_layer_norm_cuda(x, x, None, *plan, weight, weight, EPS)
    assert merged.shape == normed.shape == x.shape
    assert mean.shape == rstd.shape == merged_size.shape == (batch, tokens)
    grad, grad_weight, grad_bias = place.ops.merge_layer_norm_cuda_backward(
        merged, normed, merged, mean, rstd, weight, True, None, merged_size, *plan
    )
    assert grad.shape == x.shape
    assert (grad_weight == 0).all()
    assert (grad_bias == 0).all()
    assert grad_weight.shape == grad_bias.shape == (6,)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"x": torch.ones(1, 4, 8, dtype=torch.float64)}, "x: the CUDA kernels take float32, float16 and bfloat16"),
        ({"residual": torch.ones(1, 4, 9)}, "residual: expected the shape of x, got 9 instead of 8 in dimension 2"),
        ({"weight": torch.ones(7)}, r"weight: expected shape [8], got [7]"),
        ({"size": torch.ones(1, 5)}, r"size: expected shape [1, 4], got [1, 5]"),
        ({"size": torch.ones(1, 4).long()}, "size: expected Float, got Long"),
        ({"indices": torch.zeros(1, 4).long()}, "matching.indices: expected Int, got Long"),
        ({"x": torch.ones(1, 4, 8200), "residual": torch.ones(1, 4, 8200)}, "x: the CUDA kernel takes 1 to 8192"),
    ],
)
def test_one_sentence(place: Place, change: dict[str, Tensor], sentence: str) -> None:
    values = {**inputs((1, 4, 1, 0, None, 8), DTYPES[0]), **change}
    with pytest.raises((ValueError, RuntimeError)) as caught:
        forward(place, values)
    assert str(caught.value).startswith(sentence)
