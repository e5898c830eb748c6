"""What the launchers of several ops do to their arguments before a kernel sees them."""

from __future__ import annotations

import torch
from torch import Tensor


def refuse_double(x: Tensor) -> None:
    """The dispatch sends float64 to the reference; a direct call gets a sentence."""
    if x.dtype == torch.float64:
        raise TypeError("impl: the Triton kernels work in float32, float16 and bfloat16, got float64")


def unit_stride(x: Tensor) -> Tensor:
    """``x`` itself where its last dimension is contiguous, as the kernels assume; otherwise a copy."""
    return x if x.stride(-1) == 1 else x.contiguous()
