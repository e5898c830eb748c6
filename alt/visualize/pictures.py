"""The pictures of one clip as PNG files."""

from __future__ import annotations

import itertools
import os
from collections.abc import Container, Sequence
from pathlib import Path

import numpy as np

from alt.files import replacing
from alt.plots import drawing

from .draw import (
    CATEGORY_COLOURS,
    Key,
    category_name,
    draw_entities,
    draw_heat,
    enlarge,
    entity_keys,
    scale_colours,
)
from .explanation import Explanation
from .heat_row import HeatRow
from .regions import draw_regions
from .sheet import Swatch, draw_sheet

__all__ = ["write_pictures"]


def write_pictures(folder: str | os.PathLike[str], explanation: Explanation, rows: Sequence[HeatRow]) -> list[Path]:
    """Writes the merged regions, the entity of every region, the ranked entities, and each heat map.

    Returns:
        the files: ``regions.png``, ``entities.png`` and ``ranked.png`` where the model aligns, and one per row. Rows of
        one name ("C" and "C++") are numbered.

    Raises:
        OSError: they could not be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    captions = [f"frame {t + 1}" for t in range(len(explanation))]
    large = [enlarge(picture) for picture in explanation.pictures]
    regions = [draw_regions(picture, explanation.regions(t)) for t, picture in enumerate(large)]
    sheets = {"regions": draw_sheet(regions, captions, title="merged regions", columns=4)}
    if explanation.aligned:
        keys = entity_keys(explanation)
        tinted = [draw_entities(picture, explanation.entity_map(t), keys) for t, picture in enumerate(large)]
        title = "the entity that every region chose"
        sheets["entities"] = draw_sheet(tinted, captions, title=title, columns=4, legend=_legend(explanation, keys))
    for row in rows:
        heats = [draw_heat(picture, heat, *row.scale) for picture, heat in zip(large, row.heat, strict=True)]
        low, high = (f"{value:.2f}" for value in row.scale)
        title = f"{row.title}: {row.kind_in_words}"
        scale = (scale_colours(), low, high)
        name = _unused(f"{row.kind}_{row.name}", sheets)
        sheets[name] = draw_sheet(heats, captions, title=title, columns=4, scale=scale)
    paths = []
    for name, image in sheets.items():
        paths.append(folder / f"{name}.png")
        with replacing(paths[-1], "the picture") as partial:
            image.save(partial, "PNG")
    if explanation.aligned:
        paths.append(folder / "ranked.png")
        _draw_ranked(paths[-1], explanation)
    return paths


def _unused(name: str, taken: Container[str]) -> str:
    """Returns ``name``, numbered if it is taken."""
    numbered = (f"{name}_{number}" for number in itertools.count(2))
    return next(found for found in itertools.chain([name], numbered) if found not in taken)


def _legend(explanation: Explanation, keys: dict[int, Key]) -> list[Swatch]:
    there = {int(n) for t in range(len(explanation)) for n in np.unique(explanation.entity_map(t)) if n >= 0}
    return [
        Swatch(key.badge, f"{key.unit} ({category_name(key.category)})", key.colour)
        for number, key in keys.items()
        if number in there
    ]


def _draw_ranked(path: Path, explanation: Explanation, top: int = 12) -> None:
    """The clip's entities by category, each with a bar as long as its share of the aligned tokens."""
    keys = entity_keys(explanation)
    groups: dict[str, list] = {}
    for entity in explanation.entities[:top]:
        groups.setdefault(entity.category, []).append(entity)
    height = sum(len(group) + 1 for group in groups.values())
    with drawing(path, (5.6, 0.6 + 0.22 * height)) as (axis,):
        y, ticks, names = 0, [], []
        for category, group in groups.items():
            colour = np.array(CATEGORY_COLOURS.get(category, CATEGORY_COLOURS["entity"])) / 255
            axis.text(0, y, category_name(category), color=colour, weight="bold", va="center", parse_math=False)
            for entity in group:
                y += 1
                axis.barh(y, 100 * entity.share, color=np.array(keys[entity.number].colour) / 255)
                axis.annotate(f"{100 * entity.share:.1f} %", (100 * entity.share, y), (4, 0),
                              textcoords="offset points", va="center", size=8)  # fmt: skip
                ticks.append(y)
                names.append(entity.unit)
            y += 1
        axis.set_yticks(ticks, names)
        for label in axis.get_yticklabels():
            label.set_parse_math(False)  # a dollar sign in a name is a dollar sign
        axis.tick_params(axis="y", length=0)
        axis.set_ylim(y - 0.4, -0.6)
        axis.margins(x=0.15)
        axis.set_xlabel("share of the aligned tokens, percent")
