"""Pictures of an explanation: heat over a frame, regions in the colours of their entities, strips with captions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .explanation import Explanation
from .regions import Picture, outline_regions

__all__ = ["Key", "bars", "colour_of", "draw_entities", "draw_heat", "draw_scale", "enlarge", "entity_keys", "strip"]

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

CATEGORY_COLOURS: dict[str, tuple[int, int, int]] = {
    "object": (224, 108, 32),
    "body_part": (142, 82, 176),
    "scene": (46, 140, 84),
    "motion": (44, 108, 190),
    "label": (176, 146, 20),
    "entity": (110, 116, 124),
}
CATEGORY_NAMES = {"object": "object", "body_part": "body part", "scene": "scene", "motion": "motion"}
"""How a category is written; the others as they are called."""

# Dark blue to pale yellow, lightness rising evenly: also read right in grey and by the colour-blind.
_RAMP = np.array([(20, 20, 72), (70, 40, 130), (160, 55, 120), (226, 100, 70), (250, 170, 60), (253, 240, 150)])
_SHADES = (0.0, 0.45, -0.4, 0.68, -0.6, 0.22, -0.2)


class Key(NamedTuple):
    """How an entity is drawn: the number of its badge, and its colour, a shade of its category's."""

    badge: int
    unit: str
    category: str
    colour: tuple[int, int, int]


def enlarge(picture: Picture, at_least: int = 240) -> Picture:
    """A small picture with every pixel repeated (nearest neighbour) until its shorter side has ``at_least``."""
    factor = max(1, math.ceil(at_least / min(picture.shape[:2])))
    if min(picture.shape[:2]) * 1.5 > at_least:  # a photograph: better a little small than with blocks
        factor = 1
    return picture.repeat(factor, 0).repeat(factor, 1)


def colour_of(value: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Values in [0, 1], clipped, as colours ``[..., 3]``."""
    place = np.clip(np.nan_to_num(value), 0, 1) * (len(_RAMP) - 1)
    low = np.minimum(place.astype(np.int64), len(_RAMP) - 2)
    part = (place - low)[..., None]
    return np.rint(_RAMP[low] * (1 - part) + _RAMP[low + 1] * part).astype(np.uint8)


def draw_heat(picture: Picture, heat: NDArray[np.floating], low: float, high: float) -> Picture:
    """The picture in grey under the heat's colours; cell (y, x) of ``heat [h, w]`` covers its patch, unblurred.

    ``low`` and ``high`` are the ends of the scale: frames of one clip share them, so that they can be compared.
    """
    value = (heat.astype(np.float64) - low) / (high - low) if high > low else np.zeros(heat.shape)
    colour = _cells(colour_of(value), picture.shape[:2]).astype(np.float64)
    grey = picture.astype(np.float64) @ (0.299, 0.587, 0.114)
    return np.rint(0.42 * grey[..., None] + 0.58 * colour).astype(np.uint8)


def draw_scale(low: float, high: float, width: int = 240) -> Image.Image:
    """The colours of a heat map with the values at their ends."""
    bar = Image.fromarray(np.repeat(colour_of(np.linspace(0, 1, width))[None], 12, 0))
    out = Image.new("RGB", (width, 32), (255, 255, 255))
    out.paste(bar, (0, 0))
    draw, font = ImageDraw.Draw(out), ImageFont.load_default(size=14)
    draw.text((0, 14), f"{low:.2f}", fill=(60, 60, 60), font=font)
    draw.text((width, 14), f"{high:.2f}", fill=(60, 60, 60), font=font, anchor="ra")
    return out


def entity_keys(explanation: Explanation) -> dict[int, Key]:
    """Badge and colour of every entity of the clip, in order of share; the same in all its frames."""
    found: dict[int, Key] = {}
    seen: dict[str, int] = {}
    for badge, entity in enumerate(explanation.entities, 1):
        rank = seen.get(entity.category, 0)
        seen[entity.category] = rank + 1
        base = CATEGORY_COLOURS.get(entity.category, CATEGORY_COLOURS["entity"])
        found[entity.number] = Key(badge, entity.unit, entity.category, _shade(base, _SHADES[rank % len(_SHADES)]))
    return found


def draw_entities(picture: Picture, entity_map: NDArray[np.int64], keys: dict[int, Key]) -> Picture:
    """Every patch tinted in the colour of the entity its region was aligned to; areas outlined, with their badges.

    Patches that were not aligned (-1) stay as they are.
    """
    colours = np.zeros((*entity_map.shape, 3))
    for number, key in keys.items():
        colours[entity_map == number] = key.colour
    there = _cells((entity_map >= 0)[..., None], picture.shape[:2])
    tinted = np.where(there, np.rint(0.45 * picture + 0.55 * _cells(colours, picture.shape[:2])), picture)
    areas = _areas(entity_map)
    outlined = outline_regions(tinted.astype(np.uint8), areas)
    image = Image.fromarray(outlined)
    draw = ImageDraw.Draw(image)
    height, width = picture.shape[0] / areas.shape[0], picture.shape[1] / areas.shape[1]
    font = ImageFont.load_default(size=max(11, min(20, round(0.42 * min(height, width) + 4))))
    largest = max((int((areas == a).sum()) for a in np.unique(areas)), default=1)
    for area in np.unique(areas):
        cells = np.argwhere(areas == area)
        number = int(entity_map[tuple(cells[0])])
        if number not in keys or len(cells) < min(4, largest) * (min(height, width) < 24):
            continue  # where patches are small, single ones have no room for a badge
        middle = cells[np.abs(cells - cells.mean(0)).sum(1).argmin()] + 0.5
        _badge(draw, middle[1] * width, middle[0] * height, str(keys[number].badge), font)
    return np.asarray(image)


def strip(
    pictures: Sequence[Picture],
    captions: Sequence[str],
    title: str,
    *,
    keys: Sequence[Key] = (),
    scale: tuple[float, float] | None = None,
    columns: int = 4,
) -> Image.Image:
    """Frames side by side with a line under each, a title above, and below a legend of entities or a scale."""
    height, width = pictures[0].shape[:2]
    columns = min(columns, len(pictures))
    gap, line, head = 14, 26, 44
    rows = math.ceil(len(pictures) / columns)
    font, small = ImageFont.load_default(size=18), ImageFont.load_default(size=15)
    across = gap + columns * (width + gap)
    legend = _legend_rows(keys, across - 2 * gap, small)
    foot = 46 if scale else 12 + 24 * len(legend)
    across = max(across, round(font.getlength(title)) + 2 * gap)
    sheet = Image.new("RGB", (across, head + rows * (height + line + gap) + foot), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    draw.text((gap, 12), title, fill=(20, 20, 20), font=font)
    for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        row, column = divmod(i, columns)
        x, y = gap + column * (width + gap), head + row * (height + line + gap)
        sheet.paste(Image.fromarray(picture), (x, y))
        draw.text((x, y + height + 5), caption, fill=(60, 60, 60), font=small)
    y = head + rows * (height + line + gap)
    if scale:
        sheet.paste(draw_scale(*scale, width=min(240, across - 2 * gap)), (gap, y))
    for i, entries in enumerate(legend):
        for x, key in entries:
            draw.rectangle((gap + x, y + 24 * i, gap + x + 22, y + 24 * i + 17), fill=key.colour)
            ink = (255, 255, 255) if _dark(key.colour) else (0, 0, 0)
            draw.text((gap + x + 11, y + 24 * i + 8), str(key.badge), fill=ink, font=small, anchor="mm")
            draw.text((gap + x + 28, y + 24 * i), _said(key), fill=(40, 40, 40), font=small)
    return sheet


def bars(explanation: Explanation, top: int = 12) -> Image.Image:
    """The clip's entities by category, each with a bar as long as its share."""
    keys = entity_keys(explanation)
    groups: dict[str, list] = {}
    for entity in explanation.entities[:top]:
        groups.setdefault(entity.category, []).append(entity)
    font, small = ImageFont.load_default(size=18), ImageFont.load_default(size=15)
    rows = sum(len(group) + 1 for group in groups.values())
    left = 24 + max((round(small.getlength(e.unit)) for g in groups.values() for e in g), default=60) + 12
    sheet = Image.new("RGB", (left + 400, 52 + 26 * rows), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    draw.text((14, 12), "share of the aligned tokens", fill=(20, 20, 20), font=font)
    y = 44
    longest = max((e.share for e in explanation.entities), default=1.0)
    for category, group in groups.items():
        draw.text((14, y), CATEGORY_NAMES.get(category, category), fill=_category_ink(category), font=small)
        y += 26
        for entity in group:
            draw.text((24, y), entity.unit, fill=(40, 40, 40), font=small)
            end = left + max(2, round(310 * entity.share / longest))
            draw.rectangle((left, y + 1, end, y + 18), fill=keys[entity.number].colour)
            draw.text((end + 8, y), f"{100 * entity.share:.1f} %", fill=(40, 40, 40), font=small)
            y += 26
    return sheet


def _category_ink(category: str) -> tuple[int, int, int]:
    return _shade(CATEGORY_COLOURS.get(category, CATEGORY_COLOURS["entity"]), -0.25)


def _said(key: Key) -> str:
    return f"{key.unit} ({CATEGORY_NAMES.get(key.category, key.category)})"


def _legend_rows(keys: Sequence[Key], width: int, font: Font) -> list[list[tuple[int, Key]]]:
    rows: list[list[tuple[int, Key]]] = []
    x = width + 1
    for key in keys:
        needed = 28 + round(font.getlength(_said(key))) + 18
        if x + needed > width:
            rows.append([])
            x = 0
        rows[-1].append((x, key))
        x += needed
    return rows


def _badge(draw: ImageDraw.ImageDraw, x: float, y: float, text: str, font: Font) -> None:
    left, top, right, bottom = draw.textbbox((x, y), text, font=font, anchor="mm")
    draw.rounded_rectangle((left - 4, top - 3, right + 4, bottom + 3), radius=4, fill=(255, 255, 255))
    draw.text((x, y), text, fill=(0, 0, 0), font=font, anchor="mm")


def _cells(values: NDArray, size: tuple[int, int]) -> NDArray:
    """Cells ``[h, w, c]`` as pixels: each pixel has the cell that holds its centre, as in ``draw_regions``."""
    y = (2 * np.arange(size[0]) + 1) * values.shape[0] // (2 * size[0])
    x = (2 * np.arange(size[1]) + 1) * values.shape[1] // (2 * size[1])
    return values[y[:, None], x[None, :]]


def _areas(entity_map: NDArray[np.int64]) -> NDArray[np.int64]:
    """Connected patches (side by side) of one entity, numbered."""
    height, width = entity_map.shape
    areas = np.full((height, width), -1, np.int64)
    count = 0
    for start in [(y, x) for y in range(height) for x in range(width)]:
        if areas[start] >= 0:
            continue
        todo = [start]
        areas[start] = count
        while todo:
            y, x = todo.pop()
            for b, a in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                inside = 0 <= b < height and 0 <= a < width
                if inside and areas[b, a] < 0 and entity_map[b, a] == entity_map[y, x]:
                    areas[b, a] = count
                    todo.append((b, a))
        count += 1
    return areas


def _shade(colour: tuple[int, int, int], amount: float) -> tuple[int, int, int]:
    """Towards white (amount > 0) or black (< 0)."""
    goal = 255 if amount > 0 else 0
    red, green, blue = (round(c + abs(amount) * (goal - c)) for c in colour)
    return red, green, blue


def _dark(colour: tuple[int, int, int]) -> bool:
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] < 140
