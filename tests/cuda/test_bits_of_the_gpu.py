"""On a GPU: the kernels give the bits of the emulation, which every other test of this folder has looked at.

Nothing in them is left to a compiler: products are fused where the text says so and nowhere else, quotients and roots
are rounded to nearest, and the shapes alone decide the order of a sum. A difference here is one that no emulation
shows: a race, an instruction, a flag of nvcc.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import alt_kernels
from alt_kernels import testing

from ..triton.test_merge_layer_norm import backward_inputs, inputs, moved
from . import emulation

pytestmark = pytest.mark.gpu

f32, f16, b16 = torch.float32, torch.float16, torch.bfloat16
CUDA = torch.device("cuda")


def same_bits(op: str, values: dict[str, Any]) -> None:
    available, reason = alt_kernels.backends()["cuda"]
    assert available, reason
    emulation.library()
    expected = getattr(getattr(torch.ops, emulation.NAMESPACE), op)(*values.values())
    for _ in range(3):
        found = getattr(torch.ops.alt_kernels, op)(*moved(values, CUDA).values())
        for number, (left, right) in enumerate(zip(found, expected, strict=True)):
            testing.assert_same_bits(left.cpu(), right, name=f"result {number} of {op}")


@pytest.mark.parametrize("dtype", [f32, f16, b16], ids=str)
@pytest.mark.parametrize(
    ("tokens", "channels"), [(31, 64), (100, 32), (150, 64), (197, 64), (257, 48), (512, 64), (197, 200), (90, 33)]
)
def test_matching(tokens: int, channels: int, dtype: torch.dtype) -> None:
    """Scores that differ by less than their rounding: another order of the sum would make another plan."""
    base = torch.randn(2, 1, channels)
    metric = (base + 2.0**-9 * torch.randn(2, tokens, channels)).to(dtype)
    same_bits("bipartite_matching_cuda", {"metric": metric, "r": tokens // 3, "num_protected": 1})
    keys = (base[:, None] + 2.0**-9 * torch.randn(2, 3, tokens, channels)).to(dtype)
    same_bits("bipartite_matching_from_keys_cuda", {"k": keys, "r": tokens // 3, "num_protected": 1})


@pytest.mark.parametrize(
    "dtypes", [(f32, f32, f32, f32), (f16, f16, f16, f16), (b16, b16, f32, f32), (f32, b16, f32, f32)], ids=str
)
@pytest.mark.parametrize("channels", [5, 64, 512, 768, 1000, 1024, 1030, 1280, 4096, 8192])
def test_merge_layer_norm(channels: int, dtypes: tuple[torch.dtype, ...]) -> None:
    values = inputs((2, 33, 12, 1, 2, channels), dtypes)
    same_bits("merge_layer_norm_cuda", values)
    same_bits("merge_layer_norm_cuda_backward", backward_inputs(values))
