"""Merged regions as pictures: the patches of a photograph that a token stands for.

Everything here is a pure function on arrays. A photograph is ``[H, W, 3]`` uint8 and comes back as a new array.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .sheet import Picture, draw_sheet

__all__ = ["draw_regions", "merge_sheet", "outline_regions", "region_map", "shown_blocks"]

Regions = NDArray[np.int64]

_MAX_PANELS = 12
DARK, LIGHT = (15, 15, 15), (245, 245, 245)  # the two halves of an outline


def region_map(source: Any, grid: tuple[int, int], *, num_protected: int = 1) -> Regions:
    """Returns the region of every patch of one image: ``map[y, x] = source[num_protected + y * w + x]``.

    Args:
        source: int [N], the output row every input token ended in (one image's row of ``PatchHandle.source`` or of
            ``alt_kernels.source_map``), N = num_protected + h * w, patches in row-major order; tensor or array.
        grid: (h, w), patches down and across.
        num_protected: leading tokens that are no patches (the class token).

    Returns:
        int64 [h, w]; two patches carry the same number exactly where they were merged into the same token.

    Raises:
        ValueError: ``source`` is not one row of num_protected + h * w integers.
    """
    rows = np.asarray(source.detach().cpu() if hasattr(source, "detach") else source)
    height, width = int(grid[0]), int(grid[1])
    if rows.ndim != 1 or rows.size != num_protected + height * width:
        raise ValueError(
            f"source must have {num_protected} + {height} x {width} = {num_protected + height * width} entries in one "
            f"row (protected tokens, then the patches of grid {height} x {width}), got shape {tuple(rows.shape)}"
        )
    if not np.issubdtype(rows.dtype, np.integer):
        raise ValueError(f"source must hold integers (output rows), got {rows.dtype}")
    return rows[num_protected:].reshape(height, width).astype(np.int64)


def shown_blocks(depth: int) -> list[int]:
    """Returns the numbers (from 1) of the blocks that a sheet shows: all, or 12 evenly spaced if there are more."""
    panels = min(depth, _MAX_PANELS)
    return sorted({round((i + 1) * depth / panels) for i in range(panels)})


def draw_regions(image: Picture, regions: Regions, *, borders: bool = True) -> Picture:
    """Fills every region with its mean colour, and outlines the merged ones (two patches or more).

    Args:
        image: uint8 [H, W, 3], the picture the tower saw.
        regions: int [h, w] from ``region_map``; cell (y, x) covers the pixels whose centres lie in it.
        borders: draw the outlines; between two patches that are both unmerged there is none.

    Returns:
        uint8 [H, W, 3]. The mean over a region is rounded once, so a region's mean colour is kept within 0.5.

    Raises:
        ValueError: the shapes do not fit.
    """
    label, merged = _to_pixels(image, regions)
    count = np.bincount(label.ravel())
    mean = np.stack([np.bincount(label.ravel(), image[..., c].ravel()) / count for c in range(3)], axis=-1)
    filled = np.rint(mean).astype(np.uint8)[label]
    return _with_outlines(filled, label, merged) if borders else filled


def outline_regions(image: Picture, regions: Regions) -> Picture:
    """Draws the outlines of merged regions over the picture; arguments as in ``draw_regions``."""
    return _with_outlines(image, *_to_pixels(image, regions))


def merge_sheet(
    image: Picture,
    maps: Sequence[Regions],
    captions: Sequence[str],
    *,
    title: str = "",
    columns: int = 5,
    panel: int = 320,
) -> Image.Image:
    """Returns one sheet: the photograph, its regions after each block, and the last outlines on the photograph.

    Args:
        image: uint8 [H, W, 3].
        maps: region maps [h, w], in the order of the blocks; at least one.
        captions: one line under each of the maps.
        title: a line above everything.
        columns: panels per row.
        panel: pixels of a panel's longer side, to which the photograph is resized.

    Raises:
        ValueError: no maps, or not one caption for each.
    """
    if not maps or len(maps) != len(captions):
        raise ValueError(f"captions must have one line for each of the {len(maps)} maps (>= 1), got {len(captions)}")
    scale = panel / max(image.shape[:2])
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    large = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    panels = [large, *(draw_regions(large, m) for m in maps), outline_regions(large, maps[-1])]
    lines = ["what the tower sees", *captions, "outlines of the last"]

    return draw_sheet(panels, lines, title=title, columns=columns)


def _to_pixels(image: Picture, regions: Regions) -> tuple[Regions, NDArray[np.bool_]]:
    """Returns the region of every pixel, and True where it has more than one patch: [H, W] each."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image must be uint8 [H, W, 3], got {image.dtype} of shape {tuple(image.shape)}")
    height, width = image.shape[:2]
    if regions.ndim != 2 or not (0 < regions.shape[0] <= height and 0 < regions.shape[1] <= width):
        raise ValueError(
            f"regions must be [h, w] with at most {height} x {width} cells, got shape {tuple(regions.shape)}"
        )
    _, label, count = np.unique(regions, return_inverse=True, return_counts=True)
    label = label.reshape(regions.shape)
    # The cell that holds the pixel's centre: floor((y + 1/2) h / H).
    y = ((2 * np.arange(height) + 1) * regions.shape[0] // (2 * height))[:, None]
    x = ((2 * np.arange(width) + 1) * regions.shape[1] // (2 * width))[None, :]
    return label[y, x].astype(np.int64), (count > 1)[label][y, x]


def _with_outlines(image: Picture, label: Regions, merged: NDArray[np.bool_]) -> Picture:
    """Draw a line two pixels wide, one dark and one light so that it shows on any ground, around merged regions."""
    out = image.copy()
    dark, light = np.zeros(label.shape, dtype=bool), np.zeros(label.shape, dtype=bool)
    for a, b in (((slice(None), slice(-1)), (slice(None), slice(1, None))), ((slice(-1),), (slice(1, None),))):
        edge = (label[a] != label[b]) & (merged[a] | merged[b])
        dark[a] |= edge
        light[b] |= edge
    out[light] = LIGHT
    out[dark] = DARK  # where both meet, at corners, the dark one wins
    return out
