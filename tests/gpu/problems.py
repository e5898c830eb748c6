"""Fresh random problems on a device, and the float64 reference's answers to the very same numbers."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import alt_kernels as ak

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def normal(device: torch.device, seed: int, *sizes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def packed(device: torch.device, seed: int, batch: int, tokens: int, heads: int, depth: int, dtype: torch.dtype) -> Any:
    """q, k, v ``[B, H, N, D]``, views of a packed projection."""
    return normal(device, seed, batch, tokens, 3, heads, depth, dtype=dtype).permute(2, 0, 3, 1, 4).unbind(0)


def sizes_of(device: torch.device, seed: int, batch: int, tokens: int) -> Tensor:
    return torch.randint(1, 6, (batch, tokens), generator=torch.Generator().manual_seed(seed)).float().to(device)


def named(call: Callable[[], Any]) -> Any:
    """The result, or a skip where the named implementation has no kernel for this op or these shapes."""
    try:
        return call()
    except (ValueError, TypeError, RuntimeError) as error:
        if str(error).startswith("impl: 'cuda'"):
            pytest.skip(str(error))
        raise


def assert_close(got: Tensor, want: Tensor, rounded: Tensor, *, what: str) -> None:
    """As near to the float64 answer as the plain-torch reference of the same dtype, and 16 roundings of the largest.

    Args:
        got: of the kernel. want: of the reference in float64. rounded: of the reference in ``got``'s dtype.
    """
    assert got.shape == want.shape
    assert got.dtype == rounded.dtype, what
    assert torch.isfinite(got).all(), f"{what}: not finite"
    own = (rounded.double() - want).abs().max()
    band = 16 * torch.finfo(got.dtype).eps * want.abs().max()
    off = (got.double() - want).abs().max()
    assert off <= 2 * own + band, f"{what}: off by {float(off):.3g}, the reference by {float(own):.3g}"


def chosen_pairs(plan: ak.Matching, protected: int = 1) -> list[dict[int, int]]:
    """``{a: b}`` of every image: a merged token of A and the token of B that leads its group."""
    found = []
    for indices, offsets in zip(plan.indices.tolist(), plan.offsets.tolist(), strict=True):
        groups = [indices[i:j] for i, j in itertools.pairwise(offsets)]
        found.append({a: group[0] for group in groups for a in group[1:]})
    return found
