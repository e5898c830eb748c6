"""Triton's merge + LayerNorm and its derivative against the reference in float64, in mixed dtypes, on every branch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from alt_kernels import Matching, testing
from alt_kernels.reference import merge_layer_norm as reference
from alt_kernels.reference import weighted_merge as merge_reference
from alt_kernels.triton import launch_configs
from alt_kernels.triton import merge_layer_norm as kernels

pytestmark = pytest.mark.usefixtures("guarded")

f32, f16, b16 = torch.float32, torch.float16, torch.bfloat16
EPS = 1e-3
# x, residual, weight, bias; under autocast the stream is float32 and the branch half-precision.
DTYPES = [
    (f32, f32, f32, f32),
    (f16, f16, f16, f16),
    (b16, b16, b16, b16),
    (f32, b16, f32, f32),
    (b16, f32, f32, b16),
    (b16, f16, None, f16),
    (b16, b16, f32, None),
    (f16, f16, None, None),
]
# (batch, tokens, r, num_protected, destinations, channels): one large group among copies; tiles that end inside an
# image; the identity; one channel; the widths of ViT-B and of two tiles.
PLANS = [
    (2, 33, 12, 1, 2, 96),
    (1, 21, 9, 0, 1, 67),
    (3, 8, 0, 1, None, 5),
    (2, 7, 3, 1, None, 1),
    (1, 9, 3, 1, None, 768),
    (1, 4, 1, 0, None, 1030),
]


def name(dtypes: tuple[torch.dtype | None, ...]) -> str:
    return "-".join(str(t).removeprefix("torch.") for t in dtypes)


def inputs(shape: tuple[Any, ...], dtypes: tuple[torch.dtype | None, ...], sized: bool = True) -> dict[str, Any]:
    """Arguments of the op by name, on the CPU; sizes are whole numbers, whose sums are exact."""
    batch, tokens, r, num_protected, destinations, channels = shape
    plan = testing.random_plan(batch, tokens, r, seed=1, num_protected=num_protected, destinations=destinations)
    return {
        "x": (1.0 + 2.0 * torch.randn(batch, tokens, channels)).to(dtypes[0]),
        "residual": torch.randn(batch, tokens, channels).to(dtypes[1]),
        "size": testing.random_size(batch, tokens, seed=2, integer=True) if sized else None,
        **plan._asdict(),
        "weight": None if dtypes[2] is None else (1.0 + 0.3 * torch.randn(channels)).to(dtypes[2]),
        "bias": None if dtypes[3] is None else (0.3 * torch.randn(channels)).to(dtypes[3]),
        "eps": EPS,
    }


def moved(values: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {key: v.to(device) if isinstance(v, Tensor) else v for key, v in values.items()}


def doubled(values: dict[str, Any]) -> dict[str, Any]:
    """The same values in float64; sizes stay float32, as the contract has them."""
    return {
        key: v.double() if isinstance(v, Tensor) and v.is_floating_point() and "size" not in key else v
        for key, v in values.items()
    }


def norm_band(merged: Tensor, truth: Tensor, weight: Tensor | None, dtype: torch.dtype) -> Tensor:
    """A LayerNorm in two passes: the mean is off by gamma_C mean|x|, the deviation by its square and by gamma_2C.

    The square root and the quotient of the GPU are off by two units each, not by half a unit.
    """
    y = merged.double()
    channels = y.shape[-1]
    rstd = (y.var(-1, correction=0, keepdim=True) + EPS).rsqrt()
    h = (y - y.mean(-1, keepdim=True)) * rstd
    off = testing.gamma(channels + 2, dtype) * y.abs().mean(-1, keepdim=True) * rstd
    wrong = off + h.abs() * (off.square() + testing.gamma(2 * channels + 16, dtype))
    return testing.store_band(truth, truth.abs(), 3, dtype) + wrong * (1.0 if weight is None else weight.double().abs())


@pytest.mark.parametrize("dtypes", DTYPES, ids=name)
@pytest.mark.parametrize("shape", PLANS, ids=str)
def test_forward(shape: tuple[Any, ...], dtypes: tuple[torch.dtype | None, ...], device: torch.device) -> None:
    check_forward(inputs(shape, dtypes, sized=shape[5] != 67), device)


def check_forward(values: dict[str, Any], device: torch.device) -> None:
    """Every result inside the band that rounding explains, and the same bits twice; sizes are whole numbers."""
    plan = Matching(values["indices"], values["offsets"], values["output_row"])
    dtype = torch.promote_types(values["x"].dtype, values["residual"].dtype)
    results = kernels.merge_layer_norm(**moved(values, device))
    merged, normed, merged_size, mean, rstd = (t.cpu() for t in results)
    assert merged.dtype == normed.dtype == dtype
    assert mean.dtype == rstd.dtype == merged_size.dtype == f32

    expected, total = merge_reference.weighted_merge(
        values["x"].double() + values["residual"].double(), values["size"], *plan
    )
    magnitude = merge_reference.weighted_merge(
        values["x"].double().abs() + values["residual"].double().abs(), values["size"], *plan
    )[0]
    terms = 2 * int(plan.offsets.diff(dim=1).max()) + 6
    testing.assert_error_band(merged, expected, testing.store_band(expected, magnitude, terms, dtype), name="x")
    testing.assert_same_bits(merged_size, total)

    channels = values["x"].shape[2]
    weight, bias = (None if values[key] is None else values[key].double() for key in ("weight", "bias"))
    truth = F.layer_norm(merged.double(), (channels,), weight, bias, EPS)
    testing.assert_error_band(normed, truth, norm_band(merged, truth, weight, dtype), name="normed")
    y = merged.double()
    testing.assert_error_band(mean, y.mean(-1), testing.gamma(channels + 2, f32) * y.abs().mean(-1), name="mean")
    true_rstd = (y.var(-1, correction=0) + EPS).rsqrt()
    band = norm_band(merged, torch.ones_like(y), None, f32).amax(-1) * true_rstd
    testing.assert_error_band(rstd, true_rstd, band, name="rstd")
    for again, first in zip(kernels.merge_layer_norm(**moved(values, device)), results, strict=True):
        testing.assert_same_bits(again, first)


def test_rows_of_one_token_are_the_rounded_sum(device: torch.device) -> None:
    """x + residual in float32, rounded once: also beside rows that merge in the same tile, whatever the size."""
    for dtypes in DTYPES[:5]:
        values = inputs((2, 33, 12, 1, 2, 40), dtypes)
        values["size"] = testing.random_size(2, 33, seed=4)
        values["x"][..., 0], values["residual"][..., 0] = -0.0, -0.0  # the sign of a zero is a bit as well
        merged = kernels.merge_layer_norm(**moved(values, device))[0].cpu()
        expected = (values["x"].float() + values["residual"].float()).to(merged.dtype)
        single = values["offsets"].diff(dim=1) == 1
        own = values["indices"].gather(1, values["offsets"][:, :-1].long()).long()
        testing.assert_same_bits(merged[single], expected[torch.arange(2)[:, None], own][single])


def test_a_group_of_size_zero_gives_zeros(device: torch.device) -> None:
    """Whatever its tokens hold; its norm is the bias. A row of one token keeps its value, of size zero or not."""
    values = inputs((1, 11, 4, 1, 1, 12), DTYPES[0])
    group = values["output_row"][0] == int(values["output_row"][0].mode().values)
    values["size"][0, group] = 0.0
    values["size"][0, 0] = 0.0
    values["x"][0, group] = torch.inf
    merged, normed, *_ = (t.cpu() for t in kernels.merge_layer_norm(**moved(values, device)))
    row = int(values["output_row"][0, group][0])
    assert (merged[0, row] == 0).all()
    testing.assert_same_bits(normed[0, row], values["bias"])
    testing.assert_same_bits(merged[0, 0], (values["x"] + values["residual"])[0, 0])

    values["x"][0, group] = 1.0
    back = backward_inputs(values)
    grad = kernels.merge_layer_norm_backward(**moved(back, device))[0].cpu()
    truth = reference.merge_layer_norm_backward(**doubled(back))[0]
    assert (grad[0, group] == 0).all()
    assert (truth[0, 0] != 0).any()
    torch.testing.assert_close(grad.double(), truth, rtol=1e-5, atol=1e-5)


def test_what_lies_behind_the_plan_is_not_part_of_it(device: torch.device) -> None:
    """The next offset in memory is one that a plan of one more row would hold: a tile ends where the image does."""
    values = inputs((1, 9, 3, 1, 1, 10), DTYPES[0])
    offsets = torch.cat([values["offsets"], torch.tensor([[10, 11]], dtype=torch.int32)], 1).to(device)[:, :-2]
    expected = kernels.merge_layer_norm(**moved(values, device))
    actual = kernels.merge_layer_norm(**moved({**values, "offsets": offsets}, device))
    for left, right in zip(actual, expected, strict=True):
        testing.assert_same_bits(left, right)


def backward_inputs(values: dict[str, Any]) -> dict[str, Any]:
    merged, _, merged_size, mean, rstd = reference.merge_layer_norm(**values)
    return {
        "grad_merged": torch.randn(merged.shape).to(merged.dtype),
        "grad_normed": torch.randn(merged.shape).to(merged.dtype),
        "merged": merged,
        "mean": mean,
        "rstd": rstd,
        "weight": values["weight"],
        "has_bias": values["bias"] is not None,
        "size": values["size"],
        "merged_size": merged_size,
        **{key: values[key] for key in ("indices", "offsets", "output_row")},
    }


@pytest.mark.parametrize("dtypes", DTYPES, ids=name)
@pytest.mark.parametrize("shape", PLANS, ids=str)
def test_backward(
    shape: tuple[Any, ...],
    dtypes: tuple[torch.dtype | None, ...],
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tuned = {
        **launch_configs.config("merge_layer_norm_backward", channels=128),
        "programs": 5,
    }  # several rows per program
    monkeypatch.setattr(kernels, "config", lambda *args, **sizes: tuned)
    check_backward(backward_inputs(inputs(shape, dtypes, sized=shape[5] != 67)), device)


def check_backward(values: dict[str, Any], device: torch.device) -> None:
    results = kernels.merge_layer_norm_backward(**moved(values, device))
    grad, grad_weight, grad_bias = (t.cpu() for t in results)
    truth, true_weight, true_bias = reference.merge_layer_norm_backward(**doubled(values))
    dtype, channels = values["merged"].dtype, values["merged"].shape[2]
    assert grad.dtype == dtype
    assert grad_weight.dtype == grad_bias.dtype == f32

    # The magnitudes of the terms: |dm|, |g|, its mean, and h times the mean of |g h|, all but the first times rstd.
    wide = doubled(values)
    h = (wide["merged"] - wide["mean"][..., None]).abs() * wide["rstd"][..., None]
    dn = wide["grad_normed"].abs()
    g = dn if wide["weight"] is None else dn * wide["weight"].abs()
    along = (g + g.mean(-1, keepdim=True) + h * (g * h).mean(-1, keepdim=True)) * wide["rstd"][..., None]
    magnitude = wide["grad_merged"].abs() + along
    plan = (values["indices"], values["offsets"], values["output_row"])
    spread = merge_reference.weighted_merge_backward(magnitude, values["size"], values["merged_size"], *plan)
    first_rounding = testing.roundoff(dtype) * spread
    band = testing.store_band(truth, spread, channels + 16, dtype) + first_rounding
    testing.assert_error_band(grad, truth, band, name="grad")

    rows = dn.shape[0] * dn.shape[1]
    for name_, value, true, terms in (
        ("grad_weight", grad_weight, true_weight, dn * h if values["weight"] is not None else None),
        ("grad_bias", grad_bias, true_bias, dn if values["has_bias"] else None),
    ):
        if terms is None:
            assert value.shape == (0,)
        else:
            band = testing.gamma(rows + 8, f32) * terms.sum((0, 1)) + torch.finfo(f32).tiny
            testing.assert_error_band(value, true, band, name=name_)
    for again, before in zip(kernels.merge_layer_norm_backward(**moved(values, device)), results, strict=True):
        testing.assert_same_bits(again, before)


def test_partial_sums_of_more_programs_than_a_tile(device: torch.device) -> None:
    """More programs than one step of the final sum takes; whole numbers, so that every order gives the same."""
    values = backward_inputs(inputs((2, 90, 20, 1, None, 40), DTYPES[0]))
    values["grad_normed"] = torch.randint(-8, 9, values["merged"].shape).float()
    assert values["merged"].shape[0] * values["merged"].shape[1] > 2 * kernels.SUM_ROWS
    grad_bias = kernels.merge_layer_norm_backward(**moved(values, device))[2].cpu()
    testing.assert_same_bits(grad_bias, values["grad_normed"].sum((0, 1)))


def test_against_autograd_of_the_definition(device: torch.device) -> None:
    """Forward and backward together in float32, with a group of size zero, against autograd in float64."""
    values = inputs((2, 20, 6, 1, 2, 32), DTYPES[0])
    merged_row = int(values["output_row"][0, values["indices"][0, -1]])
    values["size"][0, values["output_row"][0] == merged_row] = 0.0
    leaves = {key: values[key].double().requires_grad_() for key in ("x", "residual", "weight", "bias")}
    merged, normed, *_ = reference.merge_layer_norm(**{**values, **leaves})
    grads = torch.randn_like(merged), torch.randn_like(normed)
    expected = torch.autograd.grad((merged, normed), list(leaves.values()), grads)

    on = moved(values, device)
    merged, _, merged_size, mean, rstd = kernels.merge_layer_norm(**on)
    plan = (on["indices"], on["offsets"], on["output_row"])
    grad, grad_weight, grad_bias = kernels.merge_layer_norm_backward(
        *(g.to(device, f32) for g in grads), merged, mean, rstd, on["weight"], True, on["size"], merged_size, *plan
    )
    for actual, truth in zip((grad, grad, grad_weight, grad_bias), expected, strict=True):
        torch.testing.assert_close(actual.cpu().double(), truth, rtol=1e-4, atol=1e-4)


def test_strided_arguments(device: torch.device) -> None:
    """The branch as a window into a larger tensor, a transposed stream, a gradient that is one number expanded."""
    values = inputs((2, 15, 4, 1, None, 24), DTYPES[0])
    dense = moved(values, device)
    window = torch.full((2, 17, 30), torch.nan)[:, 1:-1, 2:-4]
    window.copy_(values["residual"])
    keys = ("size", "indices", "offsets", "output_row", "weight", "bias")
    strided = {**values, **{key: testing.spread(values[key]) for key in keys}}
    strided |= {"x": values["x"].mT.contiguous().mT, "residual": window}
    if device.type == "cpu":  # a move to another device would make them dense
        assert not any(strided[key].is_contiguous() for key in ("x", "residual", *keys))
    expected = kernels.merge_layer_norm(**dense)
    for actual, dense_result in zip(kernels.merge_layer_norm(**moved(strided, device)), expected, strict=True):
        testing.assert_same_bits(actual, dense_result)

    back = moved(backward_inputs(values), device)
    back["grad_normed"] = torch.tensor(0.25, device=device).expand(back["merged"].shape)
    loose = {key: testing.spread(v) if isinstance(v, Tensor) and key != "grad_normed" else v for key, v in back.items()}
    for actual, dense_result in zip(
        kernels.merge_layer_norm_backward(**loose), kernels.merge_layer_norm_backward(**back), strict=True
    ):
        testing.assert_same_bits(actual, dense_result)


@pytest.mark.parametrize(("batch", "tokens"), [(0, 5), (2, 0)])
def test_nothing_to_merge(batch: int, tokens: int, device: torch.device) -> None:
    """Empty results; the gradients of weight and bias are zeros."""
    plan = {key: field.to(device) for key, field in testing.identity_plan(batch, tokens)._asdict().items()}
    x, weight = torch.randn(batch, tokens, 6, device=device), torch.ones(6, device=device)
    merged, normed, merged_size, mean, rstd = kernels.merge_layer_norm(x, x, None, *plan.values(), weight, weight, EPS)
    assert merged.shape == normed.shape == x.shape
    assert mean.shape == rstd.shape == merged_size.shape == (batch, tokens)
    grad, grad_weight, grad_bias = kernels.merge_layer_norm_backward(
        merged, normed, merged, mean, rstd, weight, True, None, merged_size, *plan.values()
    )
    assert grad.shape == x.shape
    assert (grad_weight == 0).all()
    assert (grad_bias == 0).all()
    assert grad_weight.shape == grad_bias.shape == (6,)


def test_double_is_refused(device: torch.device) -> None:
    values = moved(inputs((1, 4, 1, 0, None, 3), DTYPES[0]), device)
    for key in ("x", "residual"):
        with pytest.raises(TypeError, match="got float64"):
            kernels.merge_layer_norm(**{**values, key: values[key].double()})
