"""The argument ``impl``: a named implementation that cannot run raises, and nothing falls back."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from .small_calls import B, C, N, assign, attend, check_refusal, make_x, match, merge, norm, spread

IMPLS = {
    "match": match,
    "merge": merge,
    "spread": spread,
    "norm": norm,
    "attend": attend,
    "assign": assign,
}


@pytest.mark.parametrize("name", IMPLS)
@pytest.mark.parametrize(
    ("impl", "error", "sentence"),
    [
        ("cutlass", ValueError, "impl: expected one of 'auto', 'reference', 'cpp', 'triton', 'cuda', got 'cutlass'"),
        (None, ValueError, "impl: expected one of .*, got None"),
        ("triton", RuntimeError, "impl: 'triton' is not available"),
        ("cuda", RuntimeError, "impl: 'cuda' is not available"),
    ],
)
def test_an_implementation_that_cannot_run_raises(name: str, impl: Any, error: type[Exception], sentence: str) -> None:
    check_refusal(error, sentence, lambda: IMPLS[name](impl=impl))


def test_cpp_does_not_take_other_devices() -> None:
    with pytest.raises(ValueError, match=r"^impl: 'cpp' runs on CPU tensors, got a tensor on meta"):
        match(make_x(device="meta"), impl="cpp")
    with pytest.raises(ValueError, match=r"^impl: 'cpp' runs on CPU tensors, got a tensor on meta"):
        attend(*(make_x(B, 2, N, C, device="meta"),) * 3, impl="cpp")


def test_cpp_raises_where_the_library_is_switched_off() -> None:
    """Attention has PyTorch's CPU kernel beside ours, so it runs all the same; nothing else falls back."""
    script = """
import torch, alt_kernels as a
x, plan = torch.randn(2, 9, 4), a.bipartite_soft_matching(torch.randn(2, 9, 4), 3)
calls = {
    "match": lambda: a.bipartite_soft_matching(x, 3, impl="cpp"),
    "match keys": lambda: a.bipartite_soft_matching_from_keys(x[:, None], 3, impl="cpp"),
    "merge": lambda: a.weighted_merge(x, plan, impl="cpp"),
    "spread": lambda: a.unmerge(x[:, :6], plan, impl="cpp"),
    "norm": lambda: a.merge_layer_norm(x, x, plan, None, None, None, impl="cpp"),
    "assign": lambda: a.cosine_gumbel_assign(x, x[0], impl="cpp"),
}
for name, call in calls.items():
    try:
        call()
    except RuntimeError as error:
        assert str(error) == "impl: 'cpp' is not available: switched off by ALT_KERNELS_DISABLE_CPP=1", error
    else:
        raise SystemExit(name + " ran")
q = x[:, None]
assert torch.equal(a.proportional_attention(q, q, q, impl="cpp"), a.proportional_attention(q, q, q))
assert not a.backends()["cpp"].available
"""
    environment = {**os.environ, "ALT_KERNELS_DISABLE_CPP": "1"}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
