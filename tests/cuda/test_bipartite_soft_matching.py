"""Matching in CUDA C++: index for index the reference's plan where scores are exact, on every launch branch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from alt_kernels import Matching, testing
from alt_kernels.reference import bipartite_soft_matching as reference

from ..ops.test_bipartite_soft_matching import EXTREMES, LAYOUTS, choices, loops
from ..triton.test_bipartite_soft_matching import assert_as_good, images, packed_keys, protections
from . import emulation
from .conftest import Place

pytestmark = pytest.mark.usefixtures("poisoned_empty")

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Every size of tile (32, 64, 96, 112, 128 rows) from both sides, and several tiles.
TOKENS = (2, 3, 8, 31, 64, 65, 66, 128, 130, 192, 194, 197, 224, 226, 256, 257, 511, 512)


def plan_of(place: Place, metric: Tensor, r: int, num_protected: int = 1) -> Matching:
    plan = place.ops.bipartite_matching_cuda(metric.to(place.device), r, num_protected)
    return Matching(*(field.cpu() for field in plan))


def check(place: Place, metric: Tensor, r: int, num_protected: int, name: str) -> None:
    expected = Matching(*reference.bipartite_matching(metric.cpu(), r, num_protected))
    testing.assert_same_plan(plan_of(place, metric, r, num_protected), expected, name=name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equal_to_the_reference(place: Place, dtype: torch.dtype) -> None:
    for tokens in TOKENS if dtype == torch.float32 else (3, 197, 511):
        metric = images(tokens, dtype, seed=tokens)
        for number, num_protected in enumerate([*protections(tokens), *([3] if tokens > 4 else [])]):
            limit = (tokens - num_protected) // 2
            r = limit if number % 2 else max(1, limit // 3)
            check(place, metric, r, num_protected, f"N={tokens}, P={num_protected}, r={r}")


def test_whatever_the_order_of_the_threads(order: int) -> None:
    emulation.library()
    place = Place(getattr(torch.ops, emulation.NAMESPACE), torch.device("cpu"), True)
    for tokens, channels in ((61, 64), (197, 64), (300, 72)):
        metric = testing.exact_metric(2, tokens, 5, channels=channels, supports=(16,), zeros=0.1, non_finite=0.1)
        check(place, metric, tokens // 3, 1, f"N={tokens}, C={channels}, order {order}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("tokens", "channels"), [(61, 1), (61, 5), (300, 17), (61, 65), (300, 80), (61, 128), (61, 200), (197, 768)]
)
def test_any_number_of_channels(place: Place, dtype: torch.dtype, tokens: int, channels: int) -> None:
    """Rows that are read 16 bytes at a time and rows that cannot be, in one tile of channels and in several."""
    support = max(4**k for k in range(5) if 4**k <= channels)
    metric = testing.exact_metric(
        1, tokens, 3, channels=channels, supports=(support,), zeros=0.1, non_finite=0.1, dtype=dtype
    )
    check(place, metric, tokens // 3, 1, f"C={channels}")


def test_every_token_is_the_same(place: Place) -> None:
    """All ties: the first a's go, all of them to the first b, whatever tile they are in."""
    for tokens in (150, 512):
        expected = testing.plan_from_pairs(tokens, 1, [dict.fromkeys(range(2, 42, 2), 1)])
        testing.assert_same_plan(plan_of(place, torch.ones(1, tokens, 16), 20), expected)


@pytest.mark.parametrize("rows", ["nan", "zero", "inf"])
def test_no_row_has_a_direction(place: Place, rows: str) -> None:
    """The first sources by index, all to the lowest unprotected b."""
    metric = torch.full((2, 70, 16), {"nan": torch.nan, "zero": 0.0, "inf": torch.inf}[rows])
    for num_protected in (0, 1, 3):
        check(place, metric, 20, num_protected, f"{rows}, P={num_protected}")


@pytest.mark.parametrize(("batch", "tokens", "r"), [(0, 9, 4), (3, 0, 0), (3, 1, 0), (2, 700, 0), (0, 0, 0)])
def test_nothing_to_do(place: Place, batch: int, tokens: int, r: int) -> None:
    metric = torch.full((batch, tokens, 4), torch.nan)
    expected = Matching(*reference.bipartite_matching(metric, r, 0))
    testing.assert_same_plan(plan_of(place, metric, r, 0), expected)
    keys = metric[:, None].expand(-1, 3, -1, -1).to(place.device)
    found = place.ops.bipartite_matching_from_keys_cuda(keys, r, 0)
    testing.assert_same_plan(Matching(*(field.cpu() for field in found)), expected)


# Scores


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gaussian_choices_are_as_good(place: Place, dtype: torch.dtype) -> None:
    """Against float64: another choice only where the scores are within 1e-6."""
    metric = torch.randn(6, 197, 64, generator=testing.generator(1)).to(dtype)
    metric = metric * torch.exp2(torch.arange(197) % 7 - 3.0).to(dtype)[:, None]
    assert_as_good(metric, plan_of(place, metric, 16), 16)


@pytest.mark.parametrize("step", [2.0**-13, 2.0**-20])
def test_float32_is_not_rounded(place: Place, step: float) -> None:
    """The better b, which has the higher index, is so by bits that TF32 lacks: in the row of a, in that of b."""
    in_a = torch.tensor([[0, 0], [0, 1], [1 + step, 1], [1, 0]])
    in_b = torch.tensor([[0, 0], [1, 1], [1, 0], [1 + step, 1]])
    for rows in (in_a, in_b):
        assert choices(plan_of(place, rows[None], 1)) == [{2: 3}]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_extreme_magnitudes(place: Place, dtype: torch.dtype) -> None:
    """From the subnormals to the largest number: squares that overflow or vanish in float32 do not."""
    metric = testing.exact_metric(3, 61, seed=3, exponent=0, dtype=torch.float64)
    exponents = torch.tensor(EXTREMES[dtype])
    drawn = exponents[torch.randint(len(exponents), (3, 61), generator=testing.generator(2))]
    extreme = (metric * torch.exp2(drawn.double())[..., None]).to(dtype)
    expected = testing.plan_from_pairs(61, 1, loops(metric, 20, 1))
    testing.assert_same_plan(plan_of(place, extreme, 20), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(place: Place, layout: str) -> None:
    view = LAYOUTS[layout](testing.exact_metric(3, 41, seed=11, dtype=torch.bfloat16).to(place.device))
    plan = Matching(*(field.cpu() for field in place.ops.bipartite_matching_cuda(view, 13, 1)))
    testing.assert_same_plan(plan, Matching(*reference.bipartite_matching(view.cpu(), 13, 1)))


def test_same_bits_twice(place: Place) -> None:
    metric = torch.randn(2, 150, 48)
    testing.assert_same_plan(plan_of(place, metric, 40), plan_of(place, metric, 40))


# Keys


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("tokens", "depth", "heads"), [(50, 64, 2), (197, 64, 12), (257, 64, 3), (90, 80, 5), (90, 33, 3), (90, 64, 1)]
)
def test_mean_of_packed_keys(place: Place, dtype: torch.dtype, tokens: int, depth: int, heads: int) -> None:
    """Equal to matching on the float32 mean, from the keys where they lie among NaN, in one launch."""
    support = 16 if depth == 33 else 64
    metric = testing.exact_metric(
        2, tokens, 9, channels=depth, supports=(support,), zeros=0.1, exponent=3, dtype=dtype
    ).to(place.device)
    k = packed_keys(metric, heads)
    assert torch.equal(k.mean(1, dtype=torch.float32), metric.float())
    before = emulation.library().alt_emulation_launches()
    found = place.ops.bipartite_matching_from_keys_cuda(k, tokens // 4, 1)
    expected = reference.bipartite_matching(metric.float().cpu(), tokens // 4, 1)
    testing.assert_same_plan(Matching(*(field.cpu() for field in found)), Matching(*expected))
    assert not place.emulated or emulation.library().alt_emulation_launches() == before + 1


def test_keys_with_broken_rows_in_one_head(place: Place) -> None:
    k = packed_keys(testing.exact_metric(2, 60, 9), 4).contiguous()
    k[0, 1, 7, 3], k[0, 3, 8, 5], k[1, 0, 20:] = torch.nan, torch.inf, -torch.inf
    k[1, :, 11] = 0
    found = place.ops.bipartite_matching_from_keys_cuda(k.to(place.device), 25, 1)
    expected = reference.bipartite_matching(k.mean(1, dtype=torch.float32), 25, 1)
    testing.assert_same_plan(Matching(*(field.cpu() for field in found)), Matching(*expected))


@pytest.mark.parametrize(
    ("shape", "dtype", "r", "num_protected", "sentence"),
    [
        ((1, 513, 4), torch.float32, 1, 0, "metric: the CUDA kernel takes up to 512 tokens, got 513; impl='triton'"),
        ((1, 8, 4), torch.float64, 1, 0, "metric: the CUDA kernels take float32, float16 and bfloat16, got Double"),
        ((1, 8, 4), torch.float32, 5, 0, "r: expected 0 to 4, half of the unprotected tokens, got 5"),
        ((1, 8, 4), torch.float32, 0, 9, "num_protected: expected 0 to 8, got 9"),
    ],
)
def test_one_sentence(
    place: Place, shape: tuple[int, ...], dtype: torch.dtype, r: int, num_protected: int, sentence: str
) -> None:
    with pytest.raises((ValueError, RuntimeError)) as caught:
        place.ops.bipartite_matching_cuda(torch.ones(shape, dtype=dtype, device=place.device), r, num_protected)
    assert str(caught.value).startswith(sentence)
