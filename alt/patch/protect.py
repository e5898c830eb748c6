"""Patches that must not merge, by a mask of the caller.

Matching spares leading tokens. So a plan that merges nothing first moves the protected patches behind the special
tokens, and matching spares those as well. It is the first plan of the chain, so sizes, source maps and restored grids
need no other code, and the move is exact.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from alt_kernels import Matching

Mask = Any
"""``protect`` as users write it: a bool tensor or array ``[h, w]``, ``[n]`` or ``[B, h, w]``, or None."""

_EXPECTED = "protect must be a bool mask over patches, [h, w] or [n] for every image or [B, h, w] for each"


class ProtectedPatches:
    """The protected patches of every image, or of each image of a batch.

    Attributes:
        mask: bool ``[1 or B, n]``, n patches in row-major order.
        count: of protected patches per image.
    """

    def __init__(self, mask: Tensor, count: int) -> None:
        self.mask = mask
        self.count = count

    @property
    def per_image(self) -> bool:
        """Returns True if each image of a batch has a mask of its own."""
        return self.mask.shape[0] > 1

    def arrange(self, batch: int, leading: int, frames: int, device: torch.device) -> Matching:
        """Returns the plan that moves the protected patches behind the ``leading`` special tokens.

        Both groups keep their order. With ``frames`` > 1 a sequence holds the patches of that many images.

        Raises:
            ValueError: there are masks for another number of images.
        """
        mask = self.mask.to(device)
        if self.per_image and len(mask) != batch * frames:
            raise ValueError(
                f"protect has masks for {len(mask)} images, got {batch * frames} images; set handle.protect"
            )
        mask = mask.reshape(batch, -1) if self.per_image else mask.repeat(1, frames)
        mask = torch.cat([mask.new_ones(len(mask), leading), mask], 1)
        first = leading + self.count * frames
        row = torch.where(mask, mask.cumsum(1) - 1, first - 1 + (~mask).cumsum(1)).expand(batch, -1)
        indices = torch.zeros_like(row).scatter(1, row, torch.arange(row.shape[1], device=device).expand(batch, -1))
        offsets = torch.arange(row.shape[1] + 1, device=device).expand(batch, -1)
        return Matching(*(part.to(torch.int32).contiguous() for part in (indices, offsets, row)))


def check_protect(protect: Mask) -> ProtectedPatches | None:
    """Returns the protected patches; None if there are none.

    Raises:
        TypeError: it is not a bool tensor or array.
        ValueError: it has another shape, or protects more patches in one image than in another.
    """
    if protect is None:
        return None
    try:
        mask = torch.as_tensor(protect).detach()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{_EXPECTED}, got {type(protect).__name__}") from None
    if mask.dtype != torch.bool:
        got = str(mask.dtype).removeprefix("torch.") if isinstance(protect, Tensor) else type(protect).__name__
        raise TypeError(f"{_EXPECTED}, got {got}")
    if mask.dim() not in (1, 2, 3) or 0 in mask.shape:
        raise ValueError(f"{_EXPECTED}, got shape {list(mask.shape)}")
    mask = mask.flatten(1) if mask.dim() == 3 else mask.reshape(1, -1)
    counts = mask.sum(1).tolist()
    if min(counts) != max(counts):
        raise ValueError(
            "protect must mark as many patches in every image, because every image of a batch loses as many tokens, "
            f"got {min(counts)} to {max(counts)}; mark more patches in the others, or call the model once per image"
        )
    return ProtectedPatches(mask.clone(), counts[0]) if counts[0] else None
