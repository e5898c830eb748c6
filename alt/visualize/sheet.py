"""Panels side by side on one picture, with a line of text under each, a title above, and a legend below."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

__all__ = ["Picture", "Swatch", "draw_sheet", "font", "ink_on"]

Picture = NDArray[np.uint8]  # [H, W, 3]
Colour = tuple[int, int, int]

_GAP, _CAPTION, _TITLE, _SWATCH = 12, 28, 44, 24  # heights and gaps in pixels


class Swatch(NamedTuple):
    """An entry of a legend: a box in a colour with a number in it, and text beside it."""

    number: int
    text: str
    colour: Colour


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Returns DejaVu Sans, which comes with matplotlib and has the letters that Pillow's own font lacks."""
    import matplotlib  # here: region pictures alone need NumPy and Pillow only

    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)


def ink_on(colour: Colour) -> Colour:
    """Returns black or white, whichever can be read on the colour."""
    return (255, 255, 255) if 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] < 140 else (0, 0, 0)


def draw_sheet(
    panels: Sequence[Picture],
    captions: Sequence[str],
    *,
    title: str = "",
    columns: int = 5,
    legend: Sequence[Swatch] = (),
    scale: tuple[Picture, str, str] | None = None,
) -> Image.Image:
    """Returns panels of one size in rows.

    Args:
        panels: uint8 ``[H, W, 3]`` each, in reading order. captions: one line under each.
        title: a line above everything. columns: panels per row at most.
        legend: entries below the panels. scale: a strip of colours below the panels, and the texts under its ends.
    """
    height, width = panels[0].shape[:2]
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    head = _TITLE if title else _GAP
    across = _GAP + columns * (width + _GAP)
    lines = _wrap(legend, across - 2 * _GAP)
    foot = _SWATCH * len(lines) + (_SWATCH + scale[0].shape[0] if scale else 0)
    below = head + rows * (height + _CAPTION + _GAP)
    across = max(across, 2 * _GAP + round(font(17).getlength(title)))
    sheet = Image.new("RGB", (across, below + foot), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, 12), title, fill=(0, 0, 0), font=font(17))
    for index, (panel, caption) in enumerate(zip(panels, captions, strict=True)):
        row, column = divmod(index, columns)
        x, y = _GAP + column * (width + _GAP), head + row * (height + _CAPTION + _GAP)
        sheet.paste(Image.fromarray(panel), (x, y))
        draw.text((x, y + height + 5), caption, fill=(40, 40, 40), font=font(14))
    for number, line in enumerate(lines):
        for x, entry in line:
            _draw_swatch(draw, x, below + _SWATCH * number, entry)
    if scale is not None:
        bar, low, high = scale
        sheet.paste(Image.fromarray(bar), (_GAP, below))
        y = below + bar.shape[0] + 2
        draw.text((_GAP, y), low, fill=(40, 40, 40), font=font(14))
        draw.text((_GAP + bar.shape[1], y), high, fill=(40, 40, 40), font=font(14), anchor="ra")
    return sheet


def _wrap(legend: Sequence[Swatch], width: int) -> list[list[tuple[int, Swatch]]]:
    """Entries with their places from the left, in lines of at most ``width`` pixels."""
    lines: list[list[tuple[int, Swatch]]] = []
    x = width + 1
    for entry in legend:
        needed = 28 + round(font(14).getlength(entry.text)) + 18
        if x + needed > width:
            lines.append([])
            x = 0
        lines[-1].append((_GAP + x, entry))
        x += needed
    return lines


def _draw_swatch(draw: ImageDraw.ImageDraw, x: int, y: int, entry: Swatch) -> None:
    draw.rectangle((x, y, x + 22, y + 17), fill=entry.colour)
    draw.text((x + 11, y + 8), str(entry.number), fill=ink_on(entry.colour), font=font(13), anchor="mm")
    draw.text((x + 28, y), entry.text, fill=(40, 40, 40), font=font(14))
