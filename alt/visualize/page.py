"""One HTML page of one clip, which needs nothing but itself."""

from __future__ import annotations

import base64
import functools
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image
from torch import Tensor

from alt.files import replacing
from alt.models.video_model import VideoModel

from .draw import CATEGORY_COLOURS, Key, category_name, colour_of, draw_entities, draw_heat, enlarge, entity_keys
from .explanation import Explanation, explain
from .heat_row import HeatRow, heat_rows
from .regions import draw_regions
from .sheet import Picture, ink_on
from .truth import Agreement, Truth, share_in_clip

__all__ = ["data_uri", "heat_ramp", "open_template", "write_example_page", "write_page"]

Values = dict[str, Any]


def write_page(
    path: str | os.PathLike[str],
    explanation: Explanation,
    rows: Sequence[HeatRow],
    *,
    title: str = "What the model saw",
    note: str = "",
    top: int = 5,
    truth: Truth | None = None,
    agreement: Agreement | None = None,
) -> Path:
    """Writes one HTML file with everything in it: no script, no request, readable without a network.

    Args:
        path: the file. explanation, rows: what it shows. title: of the page. note: a sentence under the title.
        top: classes that are listed.
        truth: what the clip shows; it then stands beside what the model chose.
        agreement: of :func:`~alt.visualize.measure_agreement` on other clips; shown with the truth.

    Raises:
        OSError: it could not be written.
    """
    page = open_template("page.html.jinja").render(
        title=title,
        note=note,
        classes=explanation.classes[:top],
        class_count=len(explanation.classes),
        aligned=explanation.aligned,
        frame_count=len(explanation),
        truth=None if truth is None else _truth(explanation, truth, {} if agreement is None else agreement.categories),
        agreement=agreement,
        rows=_rows(explanation, rows, truth),
        groups=_groups(explanation, truth),
        ramp=heat_ramp(),
    )
    with replacing(path, "the page") as temporary:
        temporary.write_text(page, encoding="utf-8")
    return Path(path)


def write_example_page(
    model: VideoModel,
    clip: Tensor,
    folder: str | os.PathLike[str],
    *,
    truth: Truth | None = None,
    agreement: Agreement | None = None,
    note: str = "",
    name: str = "example.html",
) -> Path:
    """Writes the page of one clip into ``folder``.

    With a truth the heat maps are those of what is in the clip, in the categories that agree in half of the clips.

    Args:
        model: with classes, and a corpus if it aligns.
        clip: one clip of a world, uint8 ``[T, 3, H, W]``.
        folder: where the page goes.
        truth: as for :func:`write_page`.
        agreement: as for :func:`write_page`.
        note: as for :func:`write_page`.
        name: of the file.
    """
    explanation = explain(model, clip)
    texts = None
    if truth is not None and explanation.aligned:
        known = dict.fromkeys(truth.entities, 1.0) if agreement is None else agreement.categories
        texts = [units[0] for category, units in truth.entities.items() if known.get(category, 0.0) >= 0.5]
    rows = heat_rows(model, clip, explanation, texts or None)
    path = Path(folder) / name
    return write_page(path, explanation, rows, note=note, truth=truth, agreement=agreement)


@functools.cache
def open_template(name: str) -> jinja2.Template:
    """Returns a template of this package."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("alt.visualize"),
        autoescape=True,  # names of classes and entities come from files
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(name)


def heat_ramp() -> list[str]:
    """Returns colours of heat maps from the lowest value to the highest, for the style of a page."""
    return [_css(colour) for colour in colour_of(np.linspace(0, 1, 9))]


def _truth(explanation: Explanation, truth: Truth, agreement: Mapping[str, float]) -> Values:
    """The true class with its rank, and per category what is in the clip beside what was chosen."""
    ranks = {score.name: (rank, score.probability) for rank, score in enumerate(explanation.classes, 1)}
    rank, probability = ranks.get(truth.name, (0, 0.0))
    first = {entity.category: entity for entity in explanation.best_of_categories(at_least=0.0)}
    shares = {(entity.category, entity.unit): entity.share for entity in explanation.entities}
    facts = []
    for category in sorted(truth.entities, key=lambda category: -agreement.get(category, 0.0)):
        units, chosen = truth.entities[category], first.get(category)
        facts.append(
            {
                "category": category_name(category),
                "units": [(unit, shares.get((category, unit), 0.0)) for unit in units],
                "chosen": chosen and chosen.unit,
                "chosen_share": chosen and chosen.share,
                "right": chosen is not None and truth.has(category, chosen.unit),
                "agreement": agreement.get(category, 0.0),
            }
        )
    share = share_in_clip(explanation, truth)
    return {"name": truth.name, "rank": rank, "probability": probability, "facts": facts, "share": share}


def _rows(explanation: Explanation, heat: Sequence[HeatRow], truth: Truth | None) -> list[Values]:
    """The lines of the table of frames; the entities, of which the least can be trusted, come last."""
    large = [enlarge(picture) for picture in explanation.pictures]
    tokens, patches = explanation.x.shape[1], explanation.source.shape[1]
    what = f"{tokens} tokens of {patches}; outlined: patches that became one"
    regions = [draw_regions(picture, explanation.regions(t)) for t, picture in enumerate(large)]
    rows = [
        _row("frame", "as the model sees it", large),
        _row("merged regions", what if tokens < patches else "every patch is a token of its own", regions),
    ]
    for row in heat:
        heats = [draw_heat(picture, values, *row.scale) for picture, values in zip(large, row.heat, strict=True)]
        scale = tuple(f"{value:.2f}" for value in row.scale)
        rows.append(_row(row.title, row.kind_in_words, heats, scale=scale))
    if explanation.aligned:
        keys = entity_keys(explanation)
        tinted = [draw_entities(picture, explanation.entity_map(t), keys) for t, picture in enumerate(large)]
        legends = [_legend(explanation, t, keys, truth) for t in range(len(explanation))]
        rows.append(_row("entities", "the nearest text of every region", tinted, legends))
    return rows


def _row(
    title: str,
    what: str,
    pictures: Sequence[Picture],
    legends: Sequence[list[Values]] | None = None,
    scale: tuple[str, ...] | None = None,
) -> Values:
    legends = legends or [[] for _ in pictures]
    cells = [{"source": data_uri(picture), "legend": legend} for picture, legend in zip(pictures, legends, strict=True)]
    return {"title": title, "what": what, "scale": scale, "cells": cells}


def _legend(explanation: Explanation, frame: int, keys: dict[int, Key], truth: Truth | None) -> list[Values]:
    entries = []
    for entity in explanation.frames[frame][:6]:
        key = keys[entity.number]
        text = f"{entity.unit} {100 * entity.share:.0f} %"
        mark = _mark(truth, entity.category, entity.unit)
        colours = {"colour": _css(key.colour), "ink": _css(ink_on(key.colour))}
        entries.append({"badge": key.badge, "text": text, "mark": mark, **colours})
    whole = explanation.class_token_entity(frame)
    if whole is not None:
        text = f"whole frame: {explanation.units[whole]}"
        mark = _mark(truth, explanation.categories[whole], explanation.units[whole])
        entries.append({"badge": None, "text": text, "mark": mark})
    return entries


def _mark(truth: Truth | None, category: str, unit: str) -> str:
    """Returns "yes" where the entity is in the clip, "no" where it is not, "" where that is not known."""
    return "" if truth is None else "yes" if truth.has(category, unit) else "no"


def _groups(explanation: Explanation, truth: Truth | None, top: int = 12) -> list[Values]:
    """The clip's most chosen entities by category."""
    keys = entity_keys(explanation)
    groups: dict[str, Values] = {}
    for entity in explanation.entities[:top]:
        colour = _css(CATEGORY_COLOURS.get(entity.category, CATEGORY_COLOURS["entity"]))
        group = groups.setdefault(
            entity.category, {"category": category_name(entity.category), "colour": colour, "entities": []}
        )
        group["entities"].append(
            {
                "unit": entity.unit,
                "share": entity.share,
                "length": entity.share / explanation.entities[0].share,
                "colour": _css(keys[entity.number].colour),
                "mark": _mark(truth, entity.category, entity.unit),
            }
        )
    return list(groups.values())


def data_uri(picture: Picture) -> str:
    """Returns a picture for a page: PNG, which keeps flat colours exact; JPEG where a photograph would be large."""
    buffer, kind = io.BytesIO(), "png"
    Image.fromarray(picture).save(buffer, format="PNG", optimize=True)
    if buffer.tell() > 40_000:
        buffer, kind = io.BytesIO(), "jpeg"
        Image.fromarray(picture).save(buffer, format="JPEG", quality=88)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _css(colour: Sequence[int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
