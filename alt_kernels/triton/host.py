"""Arithmetic, argument checks and copies that the launchers of several ops share.

``triton.cdiv`` and ``triton.next_power_of_2`` can be called inside kernels as well, and on the host take twice the time
of a ``torch.add``.
"""

from __future__ import annotations

import torch
from torch import Tensor


def refuse_double(x: Tensor) -> None:
    """Raises for float64, which the dispatch sends to the reference, if a launcher is called directly."""
    if x.dtype == torch.float64:
        raise TypeError("impl: the Triton kernels work in float32, float16 and bfloat16, got float64")


def unit_stride(x: Tensor) -> Tensor:
    """Returns ``x`` if its last dimension is contiguous, as the kernels assume; otherwise a copy."""
    return x if x.stride()[-1] == 1 else x.contiguous()


def divide_up(number: int, by: int) -> int:
    """Returns the smallest whole number >= ``number / by``."""
    return -(-number // by)


def round_up_to_power(number: int) -> int:
    """Returns the smallest power of two >= ``number``, which is at least 1."""
    return 1 << (number - 1).bit_length()
