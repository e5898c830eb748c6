"""Argument checks and copies that the launchers of several ops share."""

from __future__ import annotations

import torch
from torch import Tensor


def refuse_double(x: Tensor) -> None:
    """Raises for float64, which the dispatch sends to the reference, if a launcher is called directly."""
    if x.dtype == torch.float64:
        raise TypeError("impl: the Triton kernels work in float32, float16 and bfloat16, got float64")


def unit_stride(x: Tensor) -> Tensor:
    """Returns ``x`` if its last dimension is contiguous, as the kernels assume; otherwise a copy."""
    return x if x.stride(-1) == 1 else x.contiguous()
