"""One frame of an explanation as a picture: heat over it, or its regions in the colours of their entities."""

from __future__ import annotations

import math
from typing import NamedTuple

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .explanation import Explanation
from .regions import outline_regions
from .sheet import Picture, font

__all__ = [
    "CATEGORY_COLOURS",
    "Key",
    "category_name",
    "colour_of",
    "draw_entities",
    "draw_heat",
    "enlarge",
    "entity_keys",
    "scale_colours",
]

CATEGORY_COLOURS: dict[str, tuple[int, int, int]] = {
    "object": (224, 108, 32),
    "body_part": (142, 82, 176),
    "scene": (46, 140, 84),
    "motion": (44, 108, 190),
    "label": (176, 146, 20),
    "entity": (110, 116, 124),
}
_SHADES = (0.0, 0.45, -0.4, 0.68, -0.6, 0.22, -0.2)


def category_name(category: str) -> str:
    """Returns a category as it is written in a text."""
    return category.replace("_", " ")


class Key(NamedTuple):
    """The number on an entity's badge, and its colour, a shade of its category's."""

    badge: int
    unit: str
    category: str
    colour: tuple[int, int, int]


def enlarge(picture: Picture, at_least: int = 240) -> Picture:
    """Returns a small picture with every pixel repeated (nearest neighbour) until its shorter side has ``at_least``."""
    factor = max(1, math.ceil(at_least / min(picture.shape[:2])))
    if min(picture.shape[:2]) * 1.5 > at_least:  # a photograph: better a little small than with blocks
        factor = 1
    return picture.repeat(factor, 0).repeat(factor, 1)


def colour_of(value: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Returns values in [0, 1] as colours ``[..., 3]``; others are clipped, NaN counts as 0.

    The lightness rises evenly, so the map also reads right in grey and for the colour-blind.
    """
    return matplotlib.colormaps["inferno"](np.clip(np.nan_to_num(value), 0, 1), bytes=True)[..., :3]


def draw_heat(picture: Picture, heat: NDArray[np.floating], low: float, high: float) -> Picture:
    """Draws the picture in grey under the heat's colours; cell (y, x) of ``heat [h, w]`` covers its patch, unblurred.

    ``low`` and ``high`` are the ends of the scale: frames of one clip share them, so that they can be compared.
    """
    value = (heat.astype(np.float64) - low) / (high - low) if high > low else np.zeros(heat.shape)
    colour = _cells(colour_of(value), picture.shape[:2]).astype(np.float64)
    grey = picture.astype(np.float64) @ (0.299, 0.587, 0.114)
    return np.rint(0.42 * grey[..., None] + 0.58 * colour).astype(np.uint8)


def scale_colours(width: int = 240, height: int = 12) -> Picture:
    """Returns the colours of a heat map from its lowest value to its highest."""
    return colour_of(np.linspace(0, 1, width))[None].repeat(height, 0)


def entity_keys(explanation: Explanation) -> dict[int, Key]:
    """Returns badge and colour of every entity of the clip, in order of share; the same in all its frames."""
    found: dict[int, Key] = {}
    seen: dict[str, int] = {}
    for badge, entity in enumerate(explanation.entities, 1):
        rank = seen.get(entity.category, 0)
        seen[entity.category] = rank + 1
        base = CATEGORY_COLOURS.get(entity.category, CATEGORY_COLOURS["entity"])
        found[entity.number] = Key(badge, entity.unit, entity.category, _shade(base, _SHADES[rank % len(_SHADES)]))
    return found


def draw_entities(picture: Picture, entity_map: NDArray[np.int64], keys: dict[int, Key]) -> Picture:
    """Tints every patch in the colour of its region's entity, and outlines areas of one entity with its badge.

    Patches that were not aligned (-1) stay as they are.
    """
    from skimage.measure import label  # half a second to import

    colours = np.zeros((*entity_map.shape, 3))
    for number, key in keys.items():
        colours[entity_map == number] = key.colour
    there = _cells((entity_map >= 0)[..., None], picture.shape[:2])
    tinted = np.where(there, np.rint(0.45 * picture + 0.55 * _cells(colours, picture.shape[:2])), picture)
    areas = label(entity_map, background=-2, connectivity=1)  # connected patches of one entity
    outlined = outline_regions(tinted.astype(np.uint8), areas)
    image = Image.fromarray(outlined)
    draw = ImageDraw.Draw(image)
    height, width = picture.shape[0] / areas.shape[0], picture.shape[1] / areas.shape[1]
    letters = font(max(10, min(18, round(0.42 * min(height, width) + 3))))
    largest = max((int((areas == a).sum()) for a in np.unique(areas)), default=1)
    for area in np.unique(areas):
        cells = np.argwhere(areas == area)
        number = int(entity_map[tuple(cells[0])])
        if number not in keys or len(cells) < min(4, largest) * (min(height, width) < 24):
            continue  # where patches are small, single ones have no room for a badge
        middle = cells[np.abs(cells - cells.mean(0)).sum(1).argmin()] + 0.5
        _badge(draw, middle[1] * width, middle[0] * height, str(keys[number].badge), letters)
    return np.asarray(image)


def _badge(draw: ImageDraw.ImageDraw, x: float, y: float, text: str, letters: ImageFont.FreeTypeFont) -> None:
    left, top, right, bottom = draw.textbbox((x, y), text, font=letters, anchor="mm")
    draw.rounded_rectangle((left - 4, top - 3, right + 4, bottom + 3), radius=4, fill=(255, 255, 255))
    draw.text((x, y), text, fill=(0, 0, 0), font=letters, anchor="mm")


def _cells(values: NDArray, size: tuple[int, int]) -> NDArray:
    """Returns cells ``[h, w, c]`` as pixels: each pixel has the cell that holds its centre, as in ``draw_regions``."""
    y = (2 * np.arange(size[0]) + 1) * values.shape[0] // (2 * size[0])
    x = (2 * np.arange(size[1]) + 1) * values.shape[1] // (2 * size[1])
    return values[y[:, None], x[None, :]]


def _shade(colour: tuple[int, int, int], amount: float) -> tuple[int, int, int]:
    """Mixes a colour with white (amount > 0) or black (< 0)."""
    goal = 255 if amount > 0 else 0
    red, green, blue = (round(c + abs(amount) * (goal - c)) for c in colour)
    return red, green, blue
