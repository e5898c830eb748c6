"""Matching of keys: the plan of their mean over heads, wherever the keys lie."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from alt_kernels import bipartite_soft_matching, bipartite_soft_matching_from_keys, testing
from alt_kernels.types import Impl

pytestmark = pytest.mark.usefixtures("poisoned_empty")

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def packed_keys(metric: Tensor, heads: int) -> Tensor:
    """Keys ``[B, H, N, D]`` inside a packed projection ``[B, N, 3, H, D]``, whose mean over heads is ``metric``.

    Heads come in pairs, metric + d and metric - d, with the metric itself in the middle where their number is odd.
    """
    batch, tokens, depth = metric.shape
    generator = testing.generator(5)
    packed = torch.randn(batch, tokens, 3, heads, depth, generator=generator).to(metric.dtype)
    k = packed[:, :, 1].transpose(1, 2)
    for pair in range(heads // 2):
        d = torch.randint(-3, 4, metric.shape, generator=generator).to(metric.dtype)
        k[:, 2 * pair], k[:, 2 * pair + 1] = metric + d, metric - d
    if heads % 2:
        k[:, -1] = metric
    return k


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("tokens", "heads", "r", "num_protected"), [(197, 12, 16, 1), (50, 2, 7, 0), (33, 1, 16, 1), (9, 4, 2, 5)]
)
def test_the_plan_of_the_mean(
    impl: Impl, dtype: torch.dtype, tokens: int, heads: int, r: int, num_protected: int
) -> None:
    """Index for index, where the mean and the scores are exact, ties included."""
    metric = testing.exact_metric(3, tokens, 7, channels=64).to(dtype)
    k = packed_keys(metric, heads)
    assert torch.equal(k.double().mean(1), metric.double()), "the mean is not what the test wants"
    found = bipartite_soft_matching_from_keys(k, r, num_protected=num_protected, impl=impl)
    exact = bipartite_soft_matching(metric.double(), r, num_protected=num_protected, impl="reference")
    testing.assert_same_plan(found, exact)
    testing.assert_valid_plan(found, 3, tokens, r, num_protected)
    contiguous = bipartite_soft_matching_from_keys(k.contiguous(), r, num_protected=num_protected, impl=impl)
    testing.assert_same_plan(found, contiguous)


def test_one_head_decides_where_the_others_agree(impl: Impl) -> None:
    """By hand: heads of equal keys but for one, which makes tokens 2 and 3 alike."""
    k = torch.eye(6).expand(1, 3, 6, 6).clone()
    k[0, 2, 2] = k[0, 2, 3]
    plan = bipartite_soft_matching_from_keys(k, 1, impl=impl)
    assert plan.output_row[0, 2] == plan.output_row[0, 3]
    assert plan.output_row[0].unique().numel() == 5


def test_the_mean_of_half_precision_keys_is_not_rounded(impl: Impl) -> None:
    """Means that differ in float32 and are one number in bfloat16: the larger cosine wins."""
    k = torch.zeros(1, 2, 4, 2)
    k[0, :, 2] = torch.tensor([1.0, 0.0])  # the only candidate of A; its partners:
    k[0, 0, 1], k[0, 1, 1] = torch.tensor([1.0, 1.0]), torch.tensor([1.0, 2.0**-9])
    k[0, 0, 3], k[0, 1, 3] = torch.tensor([1.0, 1.0]), torch.tensor([1.0, 2.0**-10])
    k = k.bfloat16()
    mean = k.mean(1)
    assert torch.equal(mean[0, 1], mean[0, 3]), "rounding to bfloat16 would tie them, and 1 would win"
    plan = bipartite_soft_matching_from_keys(k, 1, impl=impl)
    assert plan.output_row[0, 2] == plan.output_row[0, 3]


def test_identity_empty_batch_and_gradient(impl: Impl) -> None:
    k = torch.randn(2, 3, 8, 4, requires_grad=True)
    plan = bipartite_soft_matching_from_keys(k, 0, impl=impl)
    assert plan.indices.tolist() == [list(range(8))] * 2
    assert not any(t.requires_grad for t in bipartite_soft_matching_from_keys(k, 2, impl=impl))
    assert bipartite_soft_matching_from_keys(k[:0], 2, impl=impl).offsets.shape == (0, 7)


def test_keys_are_left_alone_and_bits_repeat(impl: Impl) -> None:
    k = torch.randn(2, 3, 40, 16)
    before = k.clone()
    testing.assert_same_plan(
        bipartite_soft_matching_from_keys(k, 9, impl=impl), bipartite_soft_matching_from_keys(k, 9, impl=impl)
    )
    testing.assert_same_bits(k, before)


def test_flops_are_those_of_the_matching() -> None:
    k = torch.randn(2, 3, 41, 16)
    with FlopCounterMode(display=False) as keys:
        bipartite_soft_matching_from_keys(k, 9)
    with FlopCounterMode(display=False) as metric:
        bipartite_soft_matching(k.mean(1), 9)
    assert keys.get_total_flops() == metric.get_total_flops() == 2 * 2 * 20 * 20 * 16
