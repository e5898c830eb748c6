"""Merged regions as pictures: which patches of a photograph a token stands for.

Everything here is a pure function on arrays; a photograph is ``[H, W, 3]`` uint8 and comes back as a new array.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

__all__ = ["draw_regions", "merge_sheet", "outline_regions", "region_map"]

Picture = NDArray[np.uint8]
Regions = NDArray[np.int64]


def region_map(source: Any, grid: tuple[int, int], *, num_protected: int = 1) -> Regions:
    """Region of every patch of one image: ``map[y, x] = source[num_protected + y * w + x]``.

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


def draw_regions(image: Picture, regions: Regions, *, borders: bool = True) -> Picture:
    """Every region filled with its mean colour, its outline drawn over it.

    Args:
        image: uint8 [H, W, 3], the picture the tower saw.
        regions: int [h, w] from ``region_map``; cell (y, x) covers the pixels whose centres lie in it.
        borders: draw the outlines.

    Returns:
        uint8 [H, W, 3]. The mean over a region is rounded once, so a region's mean colour is kept within 0.5.

    Raises:
        ValueError: the shapes do not fit.
    """
    pixels = _to_pixels(image, regions)
    _, label = np.unique(pixels, return_inverse=True)
    label = label.reshape(pixels.shape)
    count = np.bincount(label.ravel())
    mean = np.stack([np.bincount(label.ravel(), image[..., c].ravel()) / count for c in range(3)], axis=-1)
    filled = np.rint(mean).astype(np.uint8)[label]
    return _with_borders(filled, pixels) if borders else filled


def outline_regions(image: Picture, regions: Regions) -> Picture:
    """The picture itself with the outlines of its regions drawn over it; arguments as in ``draw_regions``."""
    return _with_borders(image, _to_pixels(image, regions))


def merge_sheet(
    image: Picture,
    maps: Sequence[Regions],
    captions: Sequence[str],
    *,
    title: str = "",
    columns: int = 5,
    panel: int = 256,
) -> Image.Image:
    """One sheet per photograph: the photograph, its regions after each block, and the last outlines on the photograph.

    Args:
        image: uint8 [H, W, 3].
        maps: region maps [h, w], in the order of the blocks; at least one.
        captions: one line under each of the maps.
        title: a line above everything.
        columns: panels in a row.
        panel: pixels of a panel's longer side.

    Returns:
        an RGB ``PIL.Image``.

    Raises:
        ValueError: no maps, or not one caption for each.
    """
    if not maps or len(maps) != len(captions):
        raise ValueError(f"captions must have one line for each of the {len(maps)} maps (>= 1), got {len(captions)}")
    scale = max(1, round(panel / max(image.shape[:2])))
    large = image.repeat(scale, axis=0).repeat(scale, axis=1)  # so that outlines are thin beside a patch
    panels = [large, *(draw_regions(large, m) for m in maps), outline_regions(large, maps[-1])]
    lines = ["what the tower sees", *captions, "outlines of the last"]

    height, width = large.shape[:2]
    columns = min(columns, len(panels))
    gap, line, head = 12, 26, 40 if title else 12
    rows = math.ceil(len(panels) / columns)
    sheet = Image.new(
        "RGB", (gap + columns * (width + gap), head + rows * (height + line + gap)), color=(255, 255, 255)
    )
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((gap, 10), title, fill=(0, 0, 0), font=ImageFont.load_default(size=18))
    font = ImageFont.load_default(size=14)
    for index, (pixels, text) in enumerate(zip(panels, lines, strict=True)):
        row, column = divmod(index, columns)
        x, y = gap + column * (width + gap), head + row * (height + line + gap)
        sheet.paste(Image.fromarray(pixels), (x, y))
        draw.text((x, y + height + 4), text, fill=(40, 40, 40), font=font)
    return sheet


def _to_pixels(image: Picture, regions: Regions) -> Regions:
    """Region of every pixel: [H, W]."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image must be uint8 [H, W, 3], got {image.dtype} of shape {tuple(image.shape)}")
    height, width = image.shape[:2]
    if regions.ndim != 2 or not (0 < regions.shape[0] <= height and 0 < regions.shape[1] <= width):
        raise ValueError(
            f"regions must be [h, w] with at most {height} x {width} cells, got shape {tuple(regions.shape)}"
        )
    y = np.arange(height) * regions.shape[0] // height
    x = np.arange(width) * regions.shape[1] // width
    return np.asarray(regions[y[:, None], x[None, :]], dtype=np.int64)


def _with_borders(image: Picture, pixels: Regions) -> Picture:
    """Draw a line where a pixel's right or lower neighbour is of another region."""
    edge = np.zeros(pixels.shape, dtype=bool)
    edge[:, :-1] |= pixels[:, :-1] != pixels[:, 1:]
    edge[:-1, :] |= pixels[:-1, :] != pixels[1:, :]
    out = image.copy()
    # Dark lines on bright ground, bright lines on dark: one colour would vanish in half of all photographs.
    bright = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32) > 110
    out[edge & bright] = (20, 20, 20)
    out[edge & ~bright] = (225, 225, 225)
    return out
