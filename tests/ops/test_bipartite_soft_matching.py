"""Matching against its definition, written out as loops, where arithmetic is exact; then on real numbers."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable
from typing import NamedTuple

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import alt_kernels
from alt_kernels import Matching, bipartite_soft_matching, testing
from alt_kernels.types import Impl

pytestmark = pytest.mark.usefixtures("poisoned_empty")

INF = math.inf


def loops(metric: Tensor, r: int, num_protected: int) -> list[dict[int, int]]:
    """The contract as a person would carry it out with a pencil: ``{a: b}`` for every image, in float64."""
    pairs = []
    for rows in metric.double().numpy():
        valid = numpy.isfinite(rows).all(-1) & (rows != 0).any(-1)
        kept = numpy.where(valid[:, None], rows, 0.0)
        length = numpy.sqrt((kept**2).sum(-1))
        unit = kept / numpy.where(valid, length, 1.0)[:, None]
        cosine = (unit @ unit.T).tolist()
        tokens = range(num_protected, len(rows))
        a_tokens, b_tokens = [t for t in tokens if t % 2 == 0], [t for t in tokens if t % 2 == 1]
        ranked = []
        for a in a_tokens if r else []:
            best, partner = -INF, b_tokens[0]
            for b in b_tokens:
                if valid[a] and valid[b] and cosine[a][b] > best:
                    best, partner = cosine[a][b], b
            ranked.append((-best, a, partner))
        pairs.append({a: b for _, a, b in sorted(ranked)[:r]})
    return pairs


class Problem(NamedTuple):
    metric: Tensor  # [B, N, 64] float64, exact in every dtype
    r: int
    num_protected: int
    answer: Matching


@functools.cache
def problems() -> tuple[Problem, ...]:
    """1,000 problems: 1 to 600 tokens, most of them few; every number of protected tokens; r from 0 to its limit.

    Images of one batch differ in how many of their rows repeat, are zero or are not finite, some in all of them.
    """
    draw = random.Random(7)
    found = []
    for number in range(1000):
        ceiling = 600 if number % 50 == 0 else 150 if number % 10 == 0 else 24
        tokens = 600 if number == 0 else draw.randint(1, ceiling)
        num_protected = draw.choice((0, 1, 1, 2, 5, draw.randint(0, tokens), tokens))
        num_protected = min(num_protected, tokens)
        limit = (tokens - num_protected) // 2
        r = draw.choice((limit, draw.randint(0, limit), draw.randint(0, limit), min(8, limit)))
        images = []
        for _ in range(draw.choice((1, 1, 2, 3))):
            zeros, non_finite = draw.choice(
                ((0, 0), (0, 0), (0.2, 0), (0, 0.2), (0.3, 0.3), (0.9, 0.05), (1, 0), (0, 1))
            )
            image = testing.exact_metric(
                1,
                tokens,
                seed=draw.randint(0, 2**31),
                supports=draw.choice(((16,), (16,), (4, 16, 64))),
                duplicates=draw.choice((0.0, 0.3, 0.9)),
                zeros=zeros,
                non_finite=non_finite,
                dtype=torch.float64,
            )
            images.append(image)
        metric = torch.cat(images)
        answer = testing.plan_from_pairs(tokens, num_protected, loops(metric, r, num_protected))
        found.append(Problem(metric, r, num_protected, answer))
    return tuple(found)


def test_the_problems_are_what_they_should_be() -> None:
    """The generator covers what the name of this file promises; ties decide many of them."""
    found = problems()
    assert len(found) == 1000
    assert {p.metric.shape[1] for p in found} >= {1, 2, 3, 600}
    assert sum(p.r > 0 for p in found) > 600
    assert sum(p.r == (p.metric.shape[1] - p.num_protected) // 2 > 0 for p in found) > 200
    assert sum(p.num_protected > 5 for p in found) > 50
    assert sum(p.metric.isnan().any().item() for p in found) > 100
    invalid = [~(p.metric.isfinite().all(-1) & (p.metric != 0).any(-1)) for p in found]
    assert sum(bool(i.all(1).any() and not i.all()) for i in invalid) > 50, "an all-invalid image among others"
    for dtype in testing.FLOAT_DTYPES:
        assert all(torch.equal(p.metric.nan_to_num(), p.metric.to(dtype).double().nan_to_num()) or
                   p.metric.isinf().any() for p in found[::20])  # fmt: skip


@pytest.mark.parametrize("dtype", testing.FLOAT_DTYPES, ids=str)
def test_equal_to_the_definition_index_for_index(impl: Impl, dtype: torch.dtype) -> None:
    for number, (metric, r, num_protected, answer) in enumerate(problems()):
        plan = bipartite_soft_matching(metric.to(dtype), r, num_protected=num_protected, impl=impl)
        name = f"problem {number}, {tuple(metric.shape)}, r={r}, num_protected={num_protected}"
        testing.assert_same_plan(plan, answer, name=name)


@given(
    tokens=st.integers(1, 70),
    protected=st.floats(0, 1),
    share=st.floats(0, 1),
    batch=st.integers(0, 3),
    channels=st.integers(1, 40),
    seed=st.integers(0, 2**31),
)
@pytest.mark.parametrize("impl", ["reference", "auto"])
def test_any_plan_is_valid(
    impl: Impl, tokens: int, protected: float, share: float, batch: int, channels: int, seed: int
) -> None:
    num_protected = round(protected**3 * tokens)
    r = round(share * ((tokens - num_protected) // 2))
    metric = torch.randn(batch, tokens, channels, generator=testing.generator(seed))
    plan = bipartite_soft_matching(metric, r, num_protected=num_protected, impl=impl)
    testing.assert_valid_plan(plan, batch, tokens, r, num_protected)


def test_identity(impl: Impl) -> None:
    """r = 0 keeps every token where it is, also where nothing could merge."""
    for batch, tokens, num_protected in ((2, 197, 1), (1, 1, 1), (1, 1, 0), (2, 7, 7), (0, 5, 1), (3, 0, 0)):
        metric = torch.randn(batch, tokens, 8)
        plan = bipartite_soft_matching(metric, 0, num_protected=num_protected, impl=impl)
        position = torch.arange(tokens + 1, dtype=torch.int32).expand(batch, -1)
        testing.assert_same_bits(plan.indices, position[:, :tokens])
        testing.assert_same_bits(plan.offsets, position)
        testing.assert_same_bits(plan.output_row, position[:, :tokens])


# By hand: small enough to check by eye.


def rows(*values: tuple[float, float]) -> Tensor:
    return torch.tensor([values])


E, F, G = (1.0, 0.0), (0.0, 1.0), (3.0, 4.0)  # E.F = 0, E.G = 0.6, F.G = 0.8


@pytest.mark.parametrize(
    ("values", "r", "num_protected", "expected"),
    [
        # tokens 2, 4 are A, tokens 1, 3 are B; token 4 is nearer to its partner than token 2
        ((E, E, G, F, F), 1, 1, [[0], [2], [1], [3, 4]]),
        ((E, E, G, F, F), 2, 1, [[0], [1], [3, 2, 4]]),
        # a tie in the score: the lower a first; a tie among the b's: the lowest b
        ((E, E, E, E, E), 1, 1, [[0], [4], [1, 2], [3]]),
        # protection follows the position in the full sequence: with 0, 2 and 3 protected, and all
        ((E, F, F, E), 1, 0, [[2], [1], [3, 0]]),
        ((E, E, E, E, F), 1, 2, [[0], [1], [4], [3, 2]]),
        ((E, E, E, F, F), 1, 3, [[0], [1], [2], [3, 4]]),
        ((E, E, E, F, F), 0, 5, [[0], [1], [2], [3], [4]]),
        # a zero destination takes nothing although it comes first, a zero source goes last
        ((E, (0.0, 0.0), E, F, F), 2, 1, [[0], [1], [3, 2, 4]]),
        ((E, E, (0.0, 0.0), F, F), 1, 1, [[0], [2], [1], [3, 4]]),
        # beyond the finite candidates: by index, into the lowest unprotected b, even if that has no direction
        ((E, E, (0.0, 0.0), F, F), 2, 1, [[0], [1, 2], [3, 4]]),
        ((E, (math.nan, 1.0), E, (INF, 1.0), F), 2, 1, [[0], [1, 2, 4], [3]]),
        ((E, E, (math.nan, 1.0), F, F, F, F), 2, 1, [[0], [2], [1], [3, 4, 6], [5]]),
        # opposite directions still are finite candidates: -1 beats -inf
        ((E, (-1.0, 0.0), E, (0.0, 0.0), F), 1, 1, [[0], [2], [1, 4], [3]]),
    ],
)
def test_by_hand(
    impl: Impl, values: tuple[tuple[float, float], ...], r: int, num_protected: int, expected: list[list[int]]
) -> None:
    plan = bipartite_soft_matching(rows(*values), r, num_protected=num_protected, impl=impl)
    assert testing.plan_groups(plan) == [expected]


def test_a_zero_row_does_not_attract_merges(impl: Impl) -> None:
    """Padding in the odd positions: without the rule all eight merges went into it (0 / 0, and NaN sorts first)."""
    metric = torch.randn(4, 50, 16)
    metric[:, 7] = 0
    metric[:, 20] = math.nan
    plan = bipartite_soft_matching(metric, 8, impl=impl)
    for groups in testing.plan_groups(plan):
        assert [7] in groups
        assert [20] in groups


# Real numbers


def choices(plan: Matching) -> list[dict[int, int]]:
    """``{a: b}`` of every image."""
    return [{a: group[0] for group in rows for a in group[1:]} for rows in testing.plan_groups(plan)]


@pytest.mark.parametrize("dtype", testing.FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("channels", [64, 768])
def test_gaussian_choices_differ_only_where_scores_are_equal(impl: Impl, dtype: torch.dtype, channels: int) -> None:
    """Scored from the rounded rows in float64, another choice is within 1e-6 of the best; and there are few.

    Holds for bfloat16 as well because its scores are kept in float32: rounded to bfloat16 they tie by the dozen.
    """
    batch, tokens, r = 24, 197, 16
    metric = torch.randn(batch, tokens, channels).to(dtype)
    found = choices(bipartite_soft_matching(metric, r, impl=impl))
    expected = loops(metric, r, 1)
    unit = torch.nn.functional.normalize(metric.double(), dim=-1)
    score = (unit @ unit.transpose(1, 2)).numpy()
    different = 0
    for image, (left, right) in enumerate(zip(found, expected, strict=True)):
        best = {a: score[image, a, 1::2].max() for a in range(2, tokens, 2)}
        for a, b in left.items():
            assert score[image, a, b] >= best[a] - 1e-6
            different += right.get(a, b) != b
        entered, left_out = set(left) - set(right), set(right) - set(left)
        different += len(entered)
        if entered:
            assert min(best[a] for a in entered) >= max(best[a] for a in left_out) - 1e-6
    assert different <= (0 if dtype == torch.float64 else 2), f"{different} of {batch * r} choices differ"


@pytest.mark.parametrize(("dtype", "channels"), [(torch.bfloat16, 1024), (torch.float16, 16384)], ids=str)
def test_half_precision_scores_are_not_rounded(impl: Impl, dtype: torch.dtype, channels: int) -> None:
    """Two scores that round to one number in the metric's dtype, the lower one first: both choices must see it."""

    def flipped(count: int) -> Tensor:
        row = torch.ones(channels)
        row[:count] = -1
        return row

    step = 2 * (3 if dtype == torch.bfloat16 else 1)  # (C - 2 count) / C falls between two numbers of the dtype
    worse, better = flipped(step // 2 + 1), flipped(step // 2)
    scores = torch.tensor([worse.mean(), better.mean()])
    assert scores[0] < scores[1]
    assert scores.to(dtype).unique().numel() == 1
    ones = torch.ones(channels)
    # b: 1 is worse than 3 for a = 2; a: 4 is worse than 6 for b = 5
    first = torch.stack([ones, worse, ones, better]).to(dtype)[None]
    assert choices(bipartite_soft_matching(first, 1, impl=impl)) == [{2: 3}]
    second = torch.stack([ones, ones, worse, ones, better]).to(dtype)[None]
    assert choices(bipartite_soft_matching(second, 1, impl=impl)) == [{4: 1}]


# Scales from the subnormals to the largest number, as exponents of two that keep 0, 1 and -1 exact.
EXTREMES = {
    torch.float32: (-149, -126, -100, 0, 100, 127),
    torch.float64: (-1074, -1022, -600, 0, 600, 1023),
    torch.bfloat16: (-133, -126, -100, 0, 100, 127),
    torch.float16: (-24, -14, 0, 8, 15),
}


@pytest.mark.parametrize("dtype", testing.FLOAT_DTYPES, ids=str)
def test_extreme_magnitudes(impl: Impl, dtype: torch.dtype) -> None:
    """Squares of 1e30 overflow and those of 1e-30 vanish in float32; the plan is that of the rescaled rows."""
    metric = testing.exact_metric(4, 61, seed=3, exponent=0, dtype=torch.float64)
    exponents = torch.tensor(EXTREMES[dtype])[torch.randint(len(EXTREMES[dtype]), (4, 61))]
    extreme = (metric * torch.exp2(exponents.double())[..., None]).to(dtype)
    assert torch.equal(extreme.double().sign(), metric)
    plan = bipartite_soft_matching(extreme, 20, impl=impl)
    testing.assert_same_plan(plan, testing.plan_from_pairs(61, 1, loops(metric, 20, 1)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("magnitude", [1e30, 1e-30])
def test_large_and_small_gaussian_rows(impl: Impl, dtype: torch.dtype, magnitude: float) -> None:
    metric = torch.randn(3, 99, 48).to(dtype)
    factor = 2.0 ** round(math.log2(magnitude))  # a power of two does not round
    plan = bipartite_soft_matching(metric * factor, 20, impl=impl)
    testing.assert_same_plan(plan, bipartite_soft_matching(metric, 20, impl=impl))


@pytest.mark.parametrize("dtype", testing.FLOAT_DTYPES, ids=str)
def test_scale_invariance(impl: Impl, dtype: torch.dtype) -> None:
    """Every row times its own power of two: cosines, and so the plan, stay bit for bit."""
    metric = torch.randn(3, 120, 32).to(dtype)
    factor = torch.exp2(torch.randint(-3, 4, (3, 120, 1)).double()).to(dtype)
    plan = bipartite_soft_matching(metric * factor, 30, impl=impl)
    testing.assert_same_plan(plan, bipartite_soft_matching(metric, 30, impl=impl))


# Layout, threads, autograd


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda m: m.transpose(1, 2).contiguous().transpose(1, 2),
    "every second channel": lambda m: torch.stack([m, torch.full_like(m, math.nan)], -1).flatten(2)[..., ::2],
    "part of packed heads": lambda m: torch.cat([m, m.neg(), m], -1)[..., m.shape[-1] : -m.shape[-1]].neg(),
    "rows of a longer sequence": lambda m: torch.cat([m.neg(), m, m.neg()], 1)[:, m.shape[1] : -m.shape[1]],
    "batch innermost": lambda m: m.permute(1, 2, 0).contiguous().permute(2, 0, 1),
    "one image repeated": lambda m: m[:1].expand(5, -1, -1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", testing.FLOAT_DTYPES, ids=str)
def test_any_strides(impl: Impl, layout: str, dtype: torch.dtype) -> None:
    metric = testing.exact_metric(3, 41, seed=11, duplicates=0.1, dtype=dtype)
    view = LAYOUTS[layout](metric)
    plan = bipartite_soft_matching(view, 13, impl=impl)
    testing.assert_same_plan(plan, testing.plan_from_pairs(41, 1, loops(view, 13, 1)))


def test_images_do_not_see_each_other(impl: Impl) -> None:
    metric = torch.randn(4, 77, 24)
    metric[1] = math.nan
    metric[2, ::3] = 0
    together = bipartite_soft_matching(metric, 20, impl=impl)
    for image in range(4):
        alone = bipartite_soft_matching(metric[image : image + 1], 20, impl=impl)
        testing.assert_same_plan(alone, Matching(*(f[image : image + 1] for f in together)))


def test_deterministic_at_any_number_of_threads(impl: Impl, threads: Callable[[int], None]) -> None:
    metric = torch.randn(8, 197, 64)
    plans = []
    for count in (1, 2, 1, 2):
        threads(count)
        plans.append(bipartite_soft_matching(metric, 30, impl=impl))
    for plan in plans[1:]:
        testing.assert_same_plan(plan, plans[0])


def test_metric_that_requires_grad(impl: Impl) -> None:
    """Matching is not differentiable, and says so by giving integers without a graph."""
    metric = torch.randn(2, 9, 4, requires_grad=True)
    plan = bipartite_soft_matching(metric, 3, impl=impl)
    assert not any(field.requires_grad for field in plan)
    testing.assert_same_plan(plan, bipartite_soft_matching(metric.detach(), 3, impl=impl))


def test_empty_batch(impl: Impl) -> None:
    plan = bipartite_soft_matching(torch.empty(0, 9, 4), 3, impl=impl)
    testing.assert_valid_plan(plan, 0, 9, 3, 1)


def test_metric_is_left_alone(impl: Impl) -> None:
    metric = testing.exact_metric(2, 30, seed=5, zeros=0.2, non_finite=0.2)
    before = metric.clone()
    bipartite_soft_matching(metric, 10, impl=impl)
    testing.assert_same_bits(metric, before)


def test_flops_charge_the_scores() -> None:
    """2 |A| |B| C for every image, nothing for the identity."""
    from torch.utils.flop_counter import FlopCounterMode

    metric = torch.randn(3, 12, 8)
    for r, num_protected, expected in ((2, 1, 3 * 2 * 5 * 6 * 8), (2, 2, 3 * 2 * 5 * 5 * 8), (0, 1, 0)):
        with FlopCounterMode(display=False) as counter:
            alt_kernels.bipartite_soft_matching(metric, r, num_protected=num_protected)
        assert counter.get_total_flops() == expected
