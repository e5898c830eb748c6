"""Offsets beyond 2^31: a product of two 32-bit integers would wrap around and read or write somewhere else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from alt_kernels import Matching, testing
from alt_kernels.triton import bipartite_soft_matching as matching
from alt_kernels.triton import merge_layer_norm as norm
from alt_kernels.triton import weighted_merge as merge

STEP = 2**30  # elements; place 2 is 2^31 from the first, while the stride itself is a 32-bit integer
B16 = torch.bfloat16


@pytest.fixture(autouse=True)
def gigabytes_go_back(device: torch.device) -> Iterator[None]:
    """To the other processes of the run on the same GPU."""
    yield
    if device.type == "cuda":
        torch.cuda.empty_cache()


def apart(x: Tensor, axis: int) -> Tensor:
    """The values of ``x``, whose places along ``axis`` are STEP elements apart; pages nobody writes cost nothing."""
    others = [n for i, n in enumerate(x.shape) if i != axis]
    room = torch.empty(STEP * (x.shape[axis] - 1) + x.numel(), dtype=x.dtype, device=x.device)
    inner = torch.empty(others).stride()
    strides = (*inner[:axis], STEP, *inner[axis:])
    return room.as_strided(x.shape, strides).copy_(x)


@pytest.mark.parametrize("axis", [0, 1], ids=["images", "tokens"])
def test_merging(device: torch.device, axis: int) -> None:
    # Far tokens as copies, as a group's own token and as the ones that merge into it.
    plan = Matching(*(field.to(device) for field in testing.plan_from_pairs(4, 0, [{0: 1}, {2: 3}, {2: 1}])))
    x, y = torch.randn(2, 3, 4, 16, device=device).to(B16)
    expected = norm.merge_layer_norm(x, y, None, *plan, None, None, 1e-5)
    far, merged = apart(x, axis), expected[0]
    for found in (
        norm.merge_layer_norm(far, y, None, *plan, None, None, 1e-5),
        norm.merge_layer_norm(y, far, None, *plan, None, None, 1e-5),
    ):
        for left, right in zip(found, expected, strict=True):
            testing.assert_same_bits(left, right)
    testing.assert_same_bits(merge.weighted_merge(far, None, *plan)[0], merge.weighted_merge(x, None, *plan)[0])
    testing.assert_same_bits(merge.unmerge(apart(merged, axis), *plan), merge.unmerge(merged, *plan))


@pytest.mark.parametrize("one_program", [512, 0], ids=["image", "tiles"])
@pytest.mark.parametrize("axis", [0, 1], ids=["images", "tokens"])
def test_matching(device: torch.device, monkeypatch: pytest.MonkeyPatch, axis: int, one_program: int) -> None:
    monkeypatch.setattr(matching, "ONE_PROGRAM", one_program)
    metric = testing.exact_metric(3, 3, 1, dtype=B16).to(device)
    expected = Matching(*matching.bipartite_matching(metric, 1, 0))
    found = Matching(*matching.bipartite_matching(apart(metric, axis), 1, 0))
    testing.assert_same_plan(found, expected)


@pytest.mark.parametrize("axis", [0, 1, 2], ids=["images", "heads", "tokens"])
def test_matching_from_keys(device: torch.device, axis: int) -> None:
    k = testing.exact_metric(9, 3, 1, dtype=B16).unflatten(0, (3, 3)).to(device)
    expected = Matching(*matching.bipartite_matching_from_keys(k, 1, 0))
    testing.assert_same_plan(Matching(*matching.bipartite_matching_from_keys(apart(k, axis), 1, 0)), expected)
