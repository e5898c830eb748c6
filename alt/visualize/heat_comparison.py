"""Heat maps of one text by several models, side by side: on one page in groups, or one picture per clip."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from alt.files import replacing
from alt.models.video_model import VideoModel

from .draw import draw_heat, enlarge, scale_colours
from .explanation import explain
from .heat_maps import Heat, text_heat_map, text_of
from .page import data_uri, heat_ramp, open_template
from .sheet import Picture, draw_sheet

__all__ = ["ComparedHeat", "TextMap", "draw_heat_comparison", "map_text", "write_heat_comparison"]

_FRAMES = 4
"""Frames of a clip that are shown: the middle ones of as many equal parts."""


class TextMap(NamedTuple):
    """The heat map of a text by one model. pictures: uint8 ``[T, H, W, 3]``. heat: cosines ``[T, h, w]``."""

    pictures: NDArray[np.uint8]
    heat: Heat


class ComparedHeat(NamedTuple):
    """Heat maps of one clip and one text. text: its name. maps: one per model, by the name of the model. group: heading
    under which the page shows it. clip: its name."""

    text: str
    maps: Mapping[str, TextMap]
    group: str = ""
    clip: str = ""

    @property
    def scale(self) -> tuple[float, float]:
        """Returns the cosines at the ends of the colours: the lowest and the highest of all models and frames."""
        heats = [found.heat for found in self.maps.values()]
        return min(float(heat.min()) for heat in heats), max(float(heat.max()) for heat in heats)

    @property
    def frames(self) -> list[int]:
        """Returns the numbers of the frames that are shown, at most four."""
        count = len(next(iter(self.maps.values())).pictures)
        shown = min(count, _FRAMES)
        return [(2 * i + 1) * count // (2 * shown) for i in range(shown)]

    def draw(self, frame: int) -> list[Picture]:
        """Returns a frame, and beside it the heat map of each model."""
        first = next(iter(self.maps.values())).pictures[frame]
        heats = (
            draw_heat(enlarge(found.pictures[frame]), found.heat[frame], *self.scale) for found in self.maps.values()
        )
        return [enlarge(first), *heats]


def map_text(model: VideoModel, clip: Tensor, text: str) -> TextMap:
    """Returns the cosine of every region of a clip with a class or entity of the model.

    Args:
        model: any video model. clip: as in :func:`~alt.visualize.explain`. text: see :func:`~alt.visualize.text_of`.

    Raises:
        TypeError, ValueError: as these two.
    """
    embedding = text_of(model, text)
    found = explain(model, clip)
    return TextMap(found.pictures, text_heat_map(found, embedding))


def write_heat_comparison(
    path: str | os.PathLike[str], compared: Sequence[ComparedHeat], *, title: str = "Heat maps", note: str = ""
) -> Path:
    """Writes one HTML file with a table per clip: one row per frame, one column per model. It makes no request.

    A table has one scale of colours, so its columns can be compared. The groups are headings, in the order in which
    they first occur.

    Args:
        path: the file. compared: one per clip. title: of the page. note: a sentence under the title.

    Raises:
        ValueError: nothing is compared, or models differ in number or size of the frames.
        OSError: it could not be written.
    """
    _check(compared)
    groups: dict[str, list[dict[str, Any]]] = {}
    for one in compared:
        rows = [(frame + 1, [data_uri(picture) for picture in one.draw(frame)]) for frame in one.frames]
        scale = [f"{value:.2f}" for value in one.scale]
        table = {"text": one.text, "clip": one.clip, "models": list(one.maps), "rows": rows, "scale": scale}
        groups.setdefault(one.group, []).append(table)
    page = open_template("heat_comparison.html.jinja").render(title=title, note=note, groups=groups, ramp=heat_ramp())
    with replacing(path, "the page") as temporary:
        temporary.write_text(page, encoding="utf-8")
    return Path(path)


def draw_heat_comparison(compared: ComparedHeat) -> Image.Image:
    """Returns the table of one clip as a picture: one row per frame, one column per model.

    Raises:
        ValueError: models differ in number or size of the frames.
    """
    _check([compared])
    panels = [picture for frame in compared.frames for picture in compared.draw(frame)]
    captions = [caption for frame in compared.frames for caption in (f"frame {frame + 1}", *compared.maps)]
    low, high = (f"{value:.2f}" for value in compared.scale)
    return draw_sheet(
        panels,
        captions,
        title=f"likeness to “{compared.text}”",
        columns=1 + len(compared.maps),
        scale=(scale_colours(), low, high),
    )


def _check(compared: Sequence[ComparedHeat]) -> None:
    if not compared or not all(one.maps for one in compared):
        raise ValueError("compared: expected at least one clip, each with the map of at least one model, got none")
    for one in compared:
        shapes = {name: list(found.pictures.shape[:3]) for name, found in one.maps.items()}
        (first, shape), *others = shapes.items()
        other = next((name for name, found in others if found != shape), None)
        if other is not None:
            raise ValueError(
                f"compared: expected maps of the same frames for {one.text!r}, got [T, H, W] {shape} of {first} and "
                f"{shapes[other]} of {other}"
            )
