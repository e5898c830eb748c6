"""Helpers of every op's tests: inputs with exact arithmetic, plans, and assertions with derived error bands.

Nothing here needs pytest, so benchmarks use the same inputs and checks.

Rounding, in the usual notation: u is half the spacing of a dtype at 1. The error of n additions in any order is at
most gamma_n = n u / (1 - n u) times the sum of the magnitudes (Higham, Accuracy and Stability, section 3.1).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .checks import FLOAT_DTYPES
from .library import backends
from .types import Matching

__all__ = [
    "FLOAT_DTYPES",
    "accumulate_dtype",
    "assert_error_band",
    "assert_same_bits",
    "assert_same_plan",
    "assert_valid_plan",
    "chi_square",
    "exact_metric",
    "gamma",
    "generator",
    "identity_plan",
    "plan_from_pairs",
    "plan_groups",
    "random_plan",
    "random_size",
    "roundoff",
    "spread",
    "store_band",
    "unavailable",
]

_BITS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}


def unavailable(impl: str) -> str | None:
    """Returns the reason why ``impl`` cannot run in this process, the only one for which a test may skip; else None."""
    backend = backends().get(impl)
    return None if backend is None or backend.available else backend.reason


def generator(seed: int) -> torch.Generator:
    """Returns a CPU generator with this seed."""
    return torch.Generator().manual_seed(seed)


# Inputs


def exact_metric(
    batch: int,
    tokens: int,
    seed: int,
    *,
    channels: int = 64,
    supports: Sequence[int] = (16,),
    duplicates: float = 0.3,
    zeros: float = 0.0,
    non_finite: float = 0.0,
    exponent: int = 6,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Returns rows on which every correct implementation computes the same scores, in every float dtype.

    A row holds -1, 0 and 1, times a power of two; one of ``supports`` is its number of non-zero entries. With
    supports of 4^k its length is a power of two too. Then cosines are multiples of a power of two, exact in float32
    in any order of summation. With 16 non-zero entries they take 33 values, so there are many ties.

    Args:
        duplicates: share of the rows that repeat an earlier row of their image, up to the sign and the scale.
        zeros: share of the rows that are zero.
        non_finite: share of the rows with one entry that is NaN, inf or -inf.
        exponent: scales are 2^-exponent .. 2^exponent.

    Returns:
        ``[batch, tokens, channels]`` of ``dtype``.
    """
    g = generator(seed)
    shape = (batch, tokens)
    rank = torch.rand(*shape, channels, generator=g).argsort(-1)
    support = torch.tensor(supports)[torch.randint(len(supports), shape, generator=g)]
    sign = torch.randint(0, 2, (*shape, channels), generator=g) * 2.0 - 1.0
    rows = torch.where(rank < support[..., None], sign, 0.0)
    if tokens > 1 and duplicates > 0:
        earlier = (torch.rand(shape, generator=g) * torch.arange(tokens)).long()
        repeated = torch.rand(shape, generator=g) < duplicates
        flip = torch.where(torch.rand(shape, generator=g) < 0.25, -1.0, 1.0)
        copies = rows.gather(1, earlier[..., None].expand_as(rows)) * flip[..., None]
        rows = torch.where(repeated[..., None], copies, rows)
    scale = torch.exp2(torch.randint(-exponent, exponent + 1, shape, generator=g).to(torch.float64))
    rows = rows.to(torch.float64) * scale[..., None]
    rows = torch.where((torch.rand(shape, generator=g) < zeros)[..., None], 0.0, rows)
    bad = torch.tensor([torch.nan, torch.inf, -torch.inf], dtype=torch.float64)
    value = bad[torch.randint(3, shape, generator=g)]
    broken = torch.rand(shape, generator=g) < non_finite
    place = torch.arange(channels) == torch.randint(channels, (*shape, 1), generator=g)
    return torch.where(broken[..., None] & place, value[..., None], rows).to(dtype)


def random_size(batch: int, tokens: int, seed: int, *, integer: bool = False, high: float = 9.0) -> Tensor:
    """Returns sizes ``[batch, tokens]`` float32 in [1, high), as they occur from the second layer on."""
    size = 1.0 + (high - 1.0) * torch.rand(batch, tokens, generator=generator(seed))
    return size.floor() if integer else size


# Plans


def plan_from_pairs(tokens: int, num_protected: int, pairs: Sequence[Mapping[int, int]]) -> Matching:
    """Returns the plan of one ``{a: b}`` (a merges into b) per image, all of the same length, by the definition.

    Rows come in the order protected, kept A ascending, B ascending. A row has its own token, then the a's ascending.
    Without pairs the plan is the identity.
    """
    a = [t for t in range(num_protected, tokens) if t % 2 == 0]
    b = [t for t in range(num_protected, tokens) if t % 2 == 1]
    removed = len(pairs[0]) if pairs else 0
    indices, offsets, output_row = [], [], []
    for merged in pairs:
        sources: dict[int, list[int]] = {}
        for source in sorted(merged):
            sources.setdefault(merged[source], []).append(source)
        groups = [[t] for t in range(num_protected if merged else tokens)]
        if merged:
            groups += [[t] for t in a if t not in merged]
            groups += [[t, *sources.get(t, ())] for t in b]
        row_of = {t: row for row, group in enumerate(groups) for t in group}
        indices.append([t for group in groups for t in group])
        offsets.append([0])
        for group in groups:
            offsets[-1].append(offsets[-1][-1] + len(group))
        output_row.append([row_of[t] for t in range(tokens)])

    def table(rows: list[list[int]], width: int) -> Tensor:
        return torch.tensor(rows, dtype=torch.int32).reshape(len(pairs), width)

    return Matching(table(indices, tokens), table(offsets, tokens - removed + 1), table(output_row, tokens))


def spread(x: Tensor) -> Tensor:
    """Returns the same values with NaN (or the largest integer) between any two of them in memory."""
    filler = torch.full_like(x, torch.nan if x.is_floating_point() else torch.iinfo(x.dtype).max)
    return torch.stack([filler, x, filler], -1)[..., 1]


def identity_plan(batch: int, tokens: int) -> Matching:
    """Returns the plan that merges nothing."""
    return plan_from_pairs(tokens, 0, [{}] * batch)


def plan_groups(plan: Matching) -> list[list[list[int]]]:
    """Returns the tokens of every output row of every image."""
    return [
        [indices[i:j] for i, j in itertools.pairwise(offsets)]
        for indices, offsets in zip(plan.indices.tolist(), plan.offsets.tolist(), strict=True)
    ]


def random_plan(
    batch: int, tokens: int, r: int, seed: int, *, num_protected: int = 1, destinations: int | None = None
) -> Matching:
    """Returns a plan that merges ``r`` random a's into random b's; few ``destinations`` make large groups."""
    g = generator(seed)
    position = torch.arange(tokens)
    a = position[num_protected + num_protected % 2 :: 2]
    b = position[num_protected + 1 - num_protected % 2 :: 2]
    pairs = []
    for _ in range(batch):
        sources = a[torch.randperm(len(a), generator=g)[:r]]
        targets = b[torch.randperm(len(b), generator=g)[:destinations]]
        into = targets[torch.randint(max(len(targets), 1), (r,), generator=g)] if r else targets[:0]
        pairs.append(dict(zip(sources.tolist(), into.tolist(), strict=True)))
    return plan_from_pairs(tokens, num_protected, pairs)


# Rounding


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype of accumulation: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def roundoff(dtype: torch.dtype) -> float:
    """Returns u: one rounding to nearest is off by at most u times the magnitude of the result."""
    return torch.finfo(dtype).eps / 2


def gamma(terms: int, dtype: torch.dtype) -> float:
    """Returns gamma_n of a sum of n terms, in the accumulation dtype of ``dtype``."""
    nu = terms * roundoff(accumulate_dtype(dtype))
    if nu >= 0.5:
        raise ValueError(f"terms: expected a sum short enough for its error to be bounded, got {terms}")
    return nu / (1 - nu)


def store_band(truth: Tensor, magnitude: Tensor | float, terms: int, dtype: torch.dtype) -> Tensor:
    """Returns the error band of a sum that is rounded once to ``dtype``: gamma_n magnitude, plus u |truth|.

    ``magnitude`` is the sum of the magnitudes of the terms. Subnormal results add half their spacing.
    """
    inner = gamma(terms, dtype) * torch.as_tensor(magnitude, dtype=torch.float64)
    spacing = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    return inner + roundoff(dtype) * (truth.double().abs() + inner) + spacing / 2


# Assertions


def assert_error_band(
    actual: Tensor, truth: Tensor, band: Tensor | float, *, reference: Tensor | None = None, name: str = "result"
) -> None:
    """Asserts |actual - truth| <= band per element, plus the largest error of ``reference`` where it is given.

    Args:
        actual: the tested result, any float dtype.
        truth: float64, computed from the same rounded inputs.
        band: the error that rounding explains, a number or a tensor that broadcasts to ``truth``.
        reference: the same result by the low-precision reference.
    """
    assert actual.shape == truth.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(truth.shape)}"
    error = (actual.double() - truth.double()).abs()
    allowed = torch.as_tensor(band, dtype=torch.float64).expand_as(error)
    if reference is not None and error.numel():
        allowed = allowed + (reference.double() - truth.double()).abs().max()
    wrong = ~(error <= allowed)  # NaN is wrong
    if wrong.any():
        excess = torch.where(error.isnan(), torch.inf, error - allowed).flatten()
        worst = int(excess.argmax())
        where = [int(i) for i in torch.unravel_index(torch.tensor(worst), error.shape)]
        raise AssertionError(
            f"{name}: {int(wrong.sum())} of {error.numel()} elements outside the band; at {where}"
            f" {actual.flatten()[worst].item()!r}, expected {truth.flatten()[worst].item()!r}"
            f" within {allowed.flatten()[worst].item():.3g}"
        )


def assert_same_bits(actual: Tensor, expected: Tensor, *, name: str = "result") -> None:
    """Asserts equal bits, including the sign of zero and the payload of NaN."""
    assert actual.dtype == expected.dtype, f"{name}: {actual.dtype}, expected {expected.dtype}"
    assert actual.shape == expected.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    bits = _BITS.get(actual.dtype)
    left, right = actual.contiguous(), expected.contiguous()
    if bits is not None:
        left, right = left.view(bits), right.view(bits)
    differ = left != right
    if differ.any():
        place = [int(i) for i in differ.nonzero()[0]]
        raise AssertionError(
            f"{name}: {int(differ.sum())} of {differ.numel()} elements differ in their bits, first at {place}:"
            f" {actual[tuple(place)].item()!r}, expected {expected[tuple(place)].item()!r}"
        )


def assert_same_plan(actual: Matching, expected: Matching, *, name: str = "plan") -> None:
    """Asserts that two plans are equal."""
    for field, left, right in zip(Matching._fields, actual, expected, strict=True):
        assert_same_bits(left, right, name=f"{name}.{field}")


def assert_valid_plan(plan: Matching, batch: int, tokens: int, r: int, num_protected: int) -> None:
    """Asserts what ``Matching`` promises for any metric."""
    rows = tokens - r
    for value, width in zip(plan, (tokens, rows + 1, tokens), strict=True):
        assert value.dtype == torch.int32
        assert value.shape == (batch, width)
        assert value.is_contiguous()
    for indices, offsets, output_row in zip(*(field.tolist() for field in plan), strict=True):
        assert sorted(indices) == list(range(tokens))
        assert offsets[0] == 0
        assert offsets[-1] == tokens
        groups = [indices[offsets[j] : offsets[j + 1]] for j in range(rows)]
        assert all(groups), "a row without a token"
        assert [output_row[t] for group in groups for t in group] == [
            j for j, group in enumerate(groups) for _ in group
        ]
        own = [group[0] for group in groups]
        kept_a = [t for t in own[num_protected:] if t % 2 == 0]
        b = [t for t in range(num_protected, tokens) if t % 2 == 1]
        assert own == ([*range(num_protected), *sorted(kept_a), *b] if r else list(range(tokens)))
        for group in groups:
            assert group[1:] == sorted(group[1:])
            assert all(t % 2 == 0 and t >= num_protected for t in group[1:]), "only tokens of A merge"
            assert len(group) == 1 or (group[0] % 2 == 1 and group[0] >= num_protected), "only into B"
        assert sum(len(group) - 1 for group in groups) == r


def chi_square(observed: Tensor, probability: Tensor) -> float:
    """Returns the p-value of counts under an exact law: the upper tail of chi-square with K - 1 degrees of freedom.

    Args:
        observed: ``[K]`` counts.
        probability: ``[K]``, sums to 1. Every expected count should be above about 5.
    """
    observed, probability = observed.double(), probability.double()
    expected = probability * observed.sum()
    statistic = ((observed - expected).square() / expected).sum()
    freedom = torch.tensor((len(observed) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, statistic / 2))
