"""Positions of tokens for attention that rotates queries and keys."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["place_tokens"]


def place_tokens(places: Tensor, batch: int, num_protected: int) -> Tensor:
    """Returns ``Embedded.positions`` ``[B, N, P]`` of the patches' coordinates ``[n, P]`` or ``[B, n, P]``.

    Protected tokens lead and lie at 0, where the angle is 0: they are not rotated.
    """
    placed = F.pad(places, (0, 0, num_protected, 0))
    return placed.expand(batch, -1, -1).contiguous()
