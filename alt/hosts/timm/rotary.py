"""timm's rotary positions: the coordinates of the patches, and the sines and cosines at any coordinates.

Every angle is linear in the coordinates (y, x) of a token, so the mean of coordinates has the mean of the angles::

    angle[h, j] = f[h, j, 0] y + f[h, j, 1] x          f: frequencies, the same for all heads but in the mixed kind

timm computes tables of the grid in float32 where it keeps them, and so does this module there: at the coordinates of
a patch it returns timm's values.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.layers.pos_embed_sincos import (
    RotaryEmbeddingCat,
    RotaryEmbeddingDinoV3,
    RotaryEmbeddingMixed,
    RotaryEmbeddingMRope,
    build_fourier_pos_embed,
    get_mixed_freqs,
)
from torch import Tensor

__all__ = ["ROPES", "coordinates", "sin_cos"]

ROPES = (RotaryEmbeddingCat, RotaryEmbeddingDinoV3, RotaryEmbeddingMixed, RotaryEmbeddingMRope)
"""The classes that are known."""


def coordinates(rope: Any, grid: tuple[int, int]) -> Tensor:
    """Returns the coordinates ``[H W, 2]`` of the patches of a grid, with the shift and scale that training draws."""
    dinov3 = isinstance(rope, RotaryEmbeddingDinoV3)
    frequencies = _frequencies(rope)
    augment = {}
    if _augments(rope):
        augment = {name: getattr(rope, name) for name in ("shift_coords", "jitter_coords", "rescale_coords")}
    places = build_fourier_pos_embed(
        list(grid),
        bands=torch.ones(1, device="cpu" if dinov3 else frequencies.device),  # only the grid is wanted
        include_grid=True,
        grid_type="centered" if dinov3 else getattr(rope, "grid_type", "index"),
        ref_feat_shape=getattr(rope, "ref_feat_shape", None),
        grid_offset=getattr(rope, "grid_offset", 0.0),
        grid_indexing=rope.grid_indexing,
        normalize_coords=getattr(rope, "normalize_coords", "separate"),
        **augment,
    )[0]
    dtype = torch.promote_types(torch.float32, frequencies.dtype)
    return places.reshape(-1, 2).to(frequencies.device, dtype)


def sin_cos(rope: Any, index: int, positions: Tensor) -> Tensor:
    """Returns sines and cosines ``[B, 1 or H, N, 2 D]`` of block ``index`` at ``positions`` ``[B, N, 2]``.

    The layout is that of the ``rope`` argument of timm's attention.
    """
    if isinstance(rope, RotaryEmbeddingMixed):
        dtype = torch.promote_types(torch.float32, rope.freqs.dtype) if _augments(rope) else rope.freqs.dtype
        y, x = positions[:, None].unbind(-1)
        return get_mixed_freqs(rope.freqs[:, index], y, x, dtype)
    kept = getattr(rope, "feat_shape", None) is not None and not _augments(rope)
    frequencies = _frequencies(rope)
    if kept:
        positions, frequencies = positions.float(), frequencies.float()
    if isinstance(rope, RotaryEmbeddingMRope):
        places = torch.cat([torch.zeros_like(positions[..., :1]), positions], -1)  # an image has no time
        axis: Tensor = rope.axis  # type: ignore[assignment]
        angles = places.index_select(-1, axis) * frequencies
    elif isinstance(rope, RotaryEmbeddingDinoV3):
        angles = (2 * math.pi * positions[..., None] / frequencies).flatten(-2)
    else:
        angles = (positions[..., None] * frequencies).flatten(-2)
    half = isinstance(rope, RotaryEmbeddingMRope) or rope.rotate_half
    table = torch.cat([_repeat(angles.sin(), half), _repeat(angles.cos(), half)], -1)[:, None]
    return table.to(_table_dtype(rope, kept, table.dtype))


def _augments(rope: Any) -> bool:
    return rope.training and rope.aug_active


def _frequencies(rope: Any) -> Tensor:
    names = {RotaryEmbeddingDinoV3: "periods", RotaryEmbeddingMixed: "freqs", RotaryEmbeddingMRope: "inv_freq"}
    return getattr(rope, names.get(type(rope), "bands"))


def _table_dtype(rope: Any, kept: bool, computed: torch.dtype) -> torch.dtype:
    """Returns the dtype in which timm passes the table on."""
    if kept:
        return getattr(rope, "pos_embed_cached" if isinstance(rope, RotaryEmbeddingDinoV3) else "pos_embed").dtype
    return torch.float32 if isinstance(rope, RotaryEmbeddingCat) and not _augments(rope) else computed


def _repeat(values: Tensor, half: bool) -> Tensor:
    """Returns one value per channel ``[..., D]`` of one per pair ``[..., D / 2]``."""
    return torch.cat([values, values], -1) if half else values.repeat_interleave(2, -1)
