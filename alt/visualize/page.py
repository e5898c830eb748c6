"""The pictures of one clip as files, and as one HTML page that needs nothing but itself."""

from __future__ import annotations

import base64
import html
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from alt.files import replacing
from alt.models.video_model import VideoModel

from .draw import (
    CATEGORY_COLOURS,
    CATEGORY_NAMES,
    Key,
    bars,
    draw_entities,
    draw_heat,
    draw_scale,
    enlarge,
    entity_keys,
    strip,
)
from .explanation import Explanation, explain
from .heat_maps import gradient_heat_map, text_heat_map, text_of
from .regions import Picture, draw_regions

__all__ = ["HeatRow", "heat_rows", "write_example_page", "write_page", "write_pictures"]

NOT_ALIGNED = "This model aligns no regions to entities; its heat maps and merged regions are all there is to show."


class HeatRow(NamedTuple):
    """One heat map of every frame. kind: "cosine" or "gradient"; name: of the file; title: what it shows."""

    kind: str
    name: str
    title: str
    heat: NDArray[np.float32]  # [T, h, w]

    @property
    def scale(self) -> tuple[float, float]:
        return (0.0, 1.0) if self.kind == "gradient" else (float(self.heat.min()), float(self.heat.max()))


def heat_rows(
    model: VideoModel, clip: Tensor, explanation: Explanation, texts: Sequence[str] | None = None
) -> list[HeatRow]:
    """Cosine and gradient maps of texts.

    Args:
        model: that explained the clip.
        clip: as given to :func:`explain`.
        explanation: the result of :func:`explain`.
        texts: entities or classes; None: the most probable class, and the entity of every category with the largest
            share.
    """
    if texts is None:
        texts = [entity.unit for entity in explanation.best_of_categories()]
        if explanation.classes and getattr(model.head, "kind", "") != "linear":
            texts = [explanation.classes[0].name, *texts]
    rows = []
    for text in dict.fromkeys(texts):
        embedding = text_of(model, text)
        name = re.sub(r"\W+", "_", text.lower()).strip("_")
        rows.append(HeatRow("cosine", name, f"likeness to “{text}”", text_heat_map(explanation, embedding)))
        rows.append(HeatRow("gradient", name, f"where “{text}” comes from", gradient_heat_map(model, clip, embedding)))
    return rows


def write_pictures(folder: str | os.PathLike[str], explanation: Explanation, rows: Sequence[HeatRow]) -> list[Path]:
    """PNG files: the merged regions, the entity of every region, the ranked entities, and each heat map.

    Raises:
        OSError: they could not be written.
    """
    captions = [f"frame {t + 1}" for t in range(len(explanation))]
    large = [enlarge(picture) for picture in explanation.pictures]
    done: dict[str, Image.Image] = {"regions": strip(_regions(explanation, large), captions, "merged regions")}
    keys = entity_keys(explanation)
    if explanation.aligned:
        tinted = [draw_entities(picture, explanation.entity_map(t), keys) for t, picture in enumerate(large)]
        done["entities"] = strip(tinted, captions, "the entity of every region", keys=_shown(explanation, keys))
        done["ranked"] = bars(explanation)
    for row in rows:
        heats = [draw_heat(picture, heat, *row.scale) for picture, heat in zip(large, row.heat, strict=True)]
        done[f"{row.kind}_{row.name}"] = strip(heats, captions, _plain(row), scale=row.scale)
    paths = []
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, image in done.items():
        path = Path(folder) / f"{name}.png"
        image.save(path)
        paths.append(path)
    return paths


def write_page(
    path: str | os.PathLike[str],
    explanation: Explanation,
    rows: Sequence[HeatRow],
    *,
    title: str = "What the model saw",
    note: str = "",
    top: int = 5,
) -> Path:
    """One HTML file with everything in it: no script, no request, readable without a network.

    Args:
        path: the file. explanation, rows: what it shows. title: of the page. note: a sentence under the title.
        top: classes that are listed.

    Raises:
        OSError: it could not be written.
    """
    large = [enlarge(picture) for picture in explanation.pictures]
    keys = entity_keys(explanation)
    parts = [f"<h1>{_text(title)}</h1>", f"<p class=note>{_text(note)}</p>" if note else ""]
    parts += ["<div class=two>", _classes(explanation, top), _entities(explanation, keys), "</div>"]
    parts += ["<h2>Frame by frame</h2>", "<div class=scroll><table>"]
    numbers = "".join(f"<th scope=col>frame {t + 1}</th>" for t in range(len(explanation)))
    parts.append(f"<tr><td></td>{numbers}</tr>")
    parts.append(_row("frame", "as the model sees it", large, [""] * len(large)))
    removed = explanation.source.shape[1] - explanation.x.shape[1]
    what = f"{explanation.x.shape[1]} tokens of {explanation.source.shape[1]}; outlined: patches that became one"
    if not removed:
        what = "every patch is a token of its own"
    parts.append(_row("merged regions", what, _regions(explanation, large), [""] * len(large)))
    if explanation.aligned:
        tinted = [draw_entities(picture, explanation.entity_map(t), keys) for t, picture in enumerate(large)]
        legends = [_legend(explanation, t, keys) for t in range(len(explanation))]
        parts.append(_row("entities", "what every region was aligned to", tinted, legends))
    for row in rows:
        heats = [draw_heat(picture, heat, *row.scale) for picture, heat in zip(large, row.heat, strict=True)]
        parts.append(_row(row.title, _KINDS[row.kind], heats, [""] * len(heats), row.scale))
    parts += ["</table></div>", _FOOT]
    body = "\n".join(part for part in parts if part)
    page = (
        f"<!DOCTYPE html>\n<html lang=en>\n<head>\n<meta charset=utf-8>\n<title>{_text(title)}</title>\n"
        '<meta name=viewport content="width=device-width, initial-scale=1">\n<link rel=icon href="data:,">\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )
    with replacing(path, "the page") as temporary:
        temporary.write_text(page, encoding="utf-8")
    return Path(path)


def write_example_page(
    model: VideoModel, clip: Tensor, folder: str | os.PathLike[str], *, shown: str = "", name: str = "example.html"
) -> Path:
    """The page of one clip in ``folder``; what a demo leaves to look at.

    Args:
        model: with classes, and a corpus if it aligns. clip: one clip of a world, uint8 ``[T, 3, H, W]``.
        shown: the clip's true class, for the sentence under the title. name: of the file.
    """
    explanation = explain(model, clip)
    note = f"The clip shows “{shown}”." if shown else ""
    return write_page(Path(folder) / name, explanation, heat_rows(model, clip, explanation), note=note)


_KINDS = {
    "cosine": "cosine of every region with the text",
    "gradient": "gradient of the text’s score, largest = 1",
}
_FOOT = (
    "<p class=note>A region is a set of patches that the tower merged into one token; all its patches have one colour. "
    "Shares count every aligned token as the patches it stands for, the class token as one. Cosine and gradient maps "
    "say where a text is found, not whether the model used it.</p>"
)
_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:#1c1e21;background:#fff}
body{margin:2rem auto;padding:0 1.5rem;max-width:1280px}
h1{font-size:1.6rem;margin:0 0 .2rem}h2{font-size:1.15rem;margin:1.8rem 0 .6rem}
h3{font-size:.95rem;margin:.9rem 0 .2rem}
.note{color:#50555c;max-width:50rem}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(320px,1fr));gap:0 3rem}
.bar{display:grid;grid-template-columns:10rem 1fr 4rem;gap:.6rem;align-items:center;margin:.15rem 0}
.bar i{display:block;height:.9rem;border-radius:2px;min-width:2px}.bar b{font-weight:400;text-align:right}
.scroll{overflow-x:auto}table{border-collapse:collapse}td,th{padding:.35rem .4rem;text-align:left;vertical-align:top}
th{font-weight:600}th[scope=row]{min-width:9rem;max-width:11rem}th small{display:block;font-weight:400;color:#50555c}
td img{display:block;width:200px;height:auto;image-rendering:pixelated}ul{list-style:none;margin:.3rem 0 0;padding:0}
li{font-size:.85rem}.tag{display:inline-block;min-width:1.5em;text-align:center;border-radius:3px;margin-right:.4em}
"""


def _regions(explanation: Explanation, large: Sequence[Picture]) -> list[Picture]:
    return [draw_regions(picture, explanation.regions(t)) for t, picture in enumerate(large)]


def _shown(explanation: Explanation, keys: dict[int, Key]) -> list[Key]:
    there = {int(n) for t in range(len(explanation)) for n in np.unique(explanation.entity_map(t)) if n >= 0}
    return [key for number, key in keys.items() if number in there]


def _plain(row: HeatRow) -> str:
    """The built-in font of pictures has no curly marks."""
    return f"{row.title}: {_KINDS[row.kind]}".translate({0x201C: '"', 0x201D: '"', 0x2019: "'"})


def _classes(explanation: Explanation, top: int) -> str:
    if not explanation.classes:
        return "<section><h2>Classes</h2><p>The model has no classes.</p></section>"
    lines = [_bar(s.name, s.probability, s.probability, "#3a5f8f") for s in explanation.classes[:top]]
    count = len(explanation.classes)
    return f"<section><h2>Most probable of {count} classes</h2>{''.join(lines)}</section>"


def _entities(explanation: Explanation, keys: dict[int, Key], top: int = 12) -> str:
    if not explanation.aligned:
        return f"<section><h2>Entities</h2><p>{NOT_ALIGNED}</p></section>"
    longest = explanation.entities[0].share
    lines = []
    listed = explanation.entities[:top]
    for category in dict.fromkeys(entity.category for entity in listed):
        colour = _css(CATEGORY_COLOURS.get(category, CATEGORY_COLOURS["entity"]))
        name = _text(CATEGORY_NAMES.get(category, category))
        lines.append(f'<h3><span class=tag style="background:{colour}">&nbsp;</span>{name}</h3>')
        lines += [
            _bar(e.unit, e.share / longest, e.share, _css(keys[e.number].colour))
            for e in listed
            if e.category == category
        ]
    return f"<section><h2>Entities its regions were aligned to</h2>{''.join(lines)}</section>"


def _bar(name: str, length: float, share: float, colour: str) -> str:
    return (
        f"<div class=bar><span>{_text(name)}</span>"
        f'<div><i style="width:{100 * length:.1f}%;background:{colour}"></i></div><b>{100 * share:.1f} %</b></div>'
    )


def _legend(explanation: Explanation, frame: int, keys: dict[int, Key]) -> str:
    lines = []
    for entity in explanation.frames[frame][:6]:
        key = keys[entity.number]
        ink = "#fff" if sum(key.colour) < 400 else "#000"
        tag = f'<span class=tag style="background:{_css(key.colour)};color:{ink}">{key.badge}</span>'
        lines.append(f"<li>{tag}{_text(entity.unit)} {100 * entity.share:.0f} %</li>")
    whole = explanation.class_token_entity(frame)
    lines.append(f"<li>whole frame: {_text(explanation.units[whole])}</li>" if whole is not None else "")
    return f"<ul>{''.join(lines)}</ul>"


def _row(
    title: str,
    what: str,
    pictures: Sequence[Picture],
    below: Sequence[str],
    scale: tuple[float, float] | None = None,
) -> str:
    legend = ""
    if scale is not None:
        bar = np.asarray(draw_scale(*scale, width=140))
        legend = _image(bar, f"scale from {scale[0]:.2f} to {scale[1]:.2f}", 140)
    head = f"<th scope=row>{_text(title)}<small>{_text(what)}</small>{legend}</th>"
    cells = [
        f"<td>{_image(picture, f'{title}, frame {t + 1}')}{under}</td>"
        for t, (picture, under) in enumerate(zip(pictures, below, strict=True))
    ]
    return f"<tr>{head}{''.join(cells)}</tr>"


def _image(picture: Picture, alt: str, width: int | None = None) -> str:
    """PNG, which keeps flat colours exact and small; JPEG where a photograph would be large."""
    buffer, kind = io.BytesIO(), "png"
    Image.fromarray(picture).save(buffer, format="PNG", optimize=True)
    if buffer.tell() > 40_000:
        buffer, kind = io.BytesIO(), "jpeg"
        Image.fromarray(picture).save(buffer, format="JPEG", quality=88)
    data = base64.b64encode(buffer.getvalue()).decode()
    size = f' style="width:{width}px"' if width else ""
    return f'<img alt="{_text(alt)}"{size} src="data:image/{kind};base64,{data}">'


def _text(text: str) -> str:
    return html.escape(text, quote=True)


def _css(colour: tuple[int, int, int]) -> str:
    return f"#{colour[0]:02x}{colour[1]:02x}{colour[2]:02x}"
