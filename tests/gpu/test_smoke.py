"""The way from a public function to a kernel on this device, once for every op; a dry run of `make gpu` runs these."""

from __future__ import annotations

import pytest
import torch

import alt_kernels as ak
from alt_kernels import testing

from .problems import normal, packed, sizes_of


def test_every_op_answers_on_this_device(device: torch.device) -> None:
    x, y = normal(device, 1, 2, 19, 32), normal(device, 2, 2, 19, 32)
    q, k, v = packed(device, 3, 2, 19, 2, 16, torch.float32)
    size = sizes_of(device, 4, 2, 19)
    plan = ak.bipartite_soft_matching_from_keys(k, 4)
    testing.assert_valid_plan(ak.Matching(*(t.cpu() for t in plan)), 2, 19, 4, 1)
    testing.assert_valid_plan(ak.Matching(*(t.cpu() for t in ak.bipartite_soft_matching(x, 4))), 2, 19, 4, 1)
    results = [
        ak.weighted_merge(x, plan, size).x,
        ak.merge_layer_norm(x, y, plan, size, None, None).normed,
        ak.unmerge(x[:, 4:], plan),
        ak.proportional_attention(q, k, v, size),
        ak.cosine_gumbel_assign(x, y[0]).output,
    ]
    for result in results:
        assert result.device.type == device.type
        assert torch.isfinite(result).all()


@pytest.mark.gpu
def test_what_this_machine_can_run(device: torch.device) -> None:
    """Without Triton there would be nothing to test here, and everything would pass."""
    assert ak.backends()["triton"].available, ak.backends()["triton"].reason
    assert device.type == "cuda", "ALT_KERNELS_TEST_DEVICE=cuda runs these tests on the GPU"
