"""Zero-shot accuracy of a CLIP on pictures at several r, beside cost and speed: of classes, or recall of captions."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from alt.data.captions import CaptionedPictures
from alt.data.picture_videos import is_picture, natural_key, read_picture
from alt.data.pixels import fit_picture, normalise
from alt.data.video import ClipError
from alt.files import replacing
from alt.hosts import find_tower
from alt.models.clip import LoadedClip
from alt.patch import patch_model
from alt.plots import drawing
from alt.tables import to_markdown

from .tower_speed import benchmark

__all__ = ["Pictures", "ZeroShotRow", "list_pictures", "measure_zero_shot", "table", "write"]

_BATCH, _ROWS = 64, 1024
_TITLES = {
    "top1": "top-1 %",
    "top5": "top-5 %",
    **{f"image_to_text_{k}": f"image to text R@{k} %" for k in (1, 5, 10)},
    **{f"text_to_image_{k}": f"text to image R@{k} %" for k in (1, 5, 10)},
}


class Pictures(NamedTuple):
    """Files, the number of each one's class, and the class names."""

    files: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]


class ZeroShotRow(NamedTuple):
    """One r.

    Attributes:
        r: None for the unpatched model.
        scores: percent. Of classes "top1" and "top5". Of captions "image_to_text_K", the share of pictures with one of
            their captions among the K nearest texts, and "text_to_image_K", the share of captions with their picture
            among the K nearest pictures, for K = 1, 5 and 10.
        gmacs: 1e9 multiply-accumulates per picture. images_per_second: of the image tower alone.
        saving_realised: share of the saving in operations that arrives in time; None where nothing is saved.
    """

    r: int | None
    scores: dict[str, float]
    gmacs: float
    images_per_second: float
    saving_realised: float | None


def list_pictures(folder: Path) -> Pictures:
    """Lists the pictures of a folder with one subfolder per class; ``_`` in a folder's name is a space of the class.

    Raises:
        ClipError: it is no such folder, or a class has no picture.
    """
    expected = "expected a folder with one folder of pictures per class, or with captions"
    if not folder.is_dir():
        raise ClipError(f"{folder}: {expected}, found no folder")
    classes = sorted((path for path in folder.iterdir() if path.is_dir()), key=lambda path: natural_key(path.name))
    if len(classes) < 2:
        raise ClipError(f"{folder}: {expected}, at least two, got {len(classes)}")
    files, labels = [], []
    for number, home in enumerate(classes):
        inside = sorted((path for path in home.iterdir() if is_picture(path.name)), key=lambda p: natural_key(p.name))
        if not inside:
            raise ClipError(f"{home}: {expected}, found no picture")
        files += inside
        labels += [number] * len(inside)
    return Pictures(tuple(files), tuple(labels), tuple(home.name.replace("_", " ") for home in classes))


def measure_zero_shot(
    loaded: LoadedClip,
    pictures: Pictures | CaptionedPictures,
    r: Sequence[int],
    *,
    device: str = "cpu",
    seconds: float = 30.0,
    say: Callable[[str], None] = lambda line: None,
) -> list[ZeroShotRow]:
    """Returns a row for the unpatched model and one for each r.

    Picture and text are compared by the cosine of their embeddings. The text of a class is the mean over the model's
    templates, that of a caption the caption itself.

    Args:
        loaded: of :func:`alt.models.clip.build_clip`. seconds: budget of the timing. say: receives lines of progress.

    Raises:
        ClipError: a picture cannot be read. ValueError: the text tower does not know a class name. TypeError: the image
            tower cannot be patched.
    """
    clip = loaded.clip.to(device).eval()
    host, tower = find_tower(clip)
    encoder = loaded.text_encoder()
    if isinstance(pictures, Pictures):
        texts = encoder.embed_classes(pictures.classes, loaded.templates).to(device)
    else:
        texts = encoder.embed(pictures.captions).to(device)
    load = partial(_load, size=host.image_size(tower), statistics=host.mean_std(tower), whole=host.squeezes(clip))
    embedded: dict[int | None, list[Tensor]] = {value: [] for value in (None, *r)}

    def encode(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return F.normalize(host.encode_image(clip, images).float(), dim=-1)

    for start in range(0, len(pictures.files), _BATCH):
        images = torch.stack([load(file) for file in pictures.files[start : start + _BATCH]])
        images = images.to(next(clip.parameters()))
        embedded[None].append(encode(images))
        with patch_model(clip, 0) as handle:
            for value in r:
                handle.r = value
                embedded[value].append(encode(images))
        say(f"{min(start + _BATCH, len(pictures.files))} of {len(pictures.files)} pictures")
    # r = 0 is always among the rows of a benchmark, after the unpatched one.
    speed = {row.r: row for row in benchmark(clip, batch_size=8, r=[v for v in r if v], seconds=seconds).rows}
    rows = []
    for state, parts in embedded.items():
        row = speed[state]
        realised = None if row.saving_realised is None else row.saving_realised.median
        scores = _score(torch.cat(parts), texts.float(), pictures)
        rows.append(ZeroShotRow(state, scores, row.gmacs, row.images_per_second, realised))
    return rows


def table(rows: Sequence[ZeroShotRow]) -> str:
    """Returns the rows as a Markdown table."""
    head = ("r", *(_TITLES[name] for name in rows[0].scores), "GMACs", "images/s", "saving realised")
    cells = [
        (
            *("unpatched" if row.r is None else row.r, *row.scores.values(), f"{row.gmacs:.3g}"),
            *(
                f"{row.images_per_second:.4g}",
                None if row.saving_realised is None else f"{100 * row.saving_realised:.0f} %",
            ),
        )
        for row in rows
    ]
    return to_markdown(head, cells)


def write(rows: Sequence[ZeroShotRow], pictures: Pictures | CaptionedPictures, folder: Path) -> list[Path]:
    """Writes zeroshot.json, .md and .svg into ``folder`` and returns their paths."""
    record: dict[str, Any] = {"pictures": len(pictures.files)}
    if isinstance(pictures, Pictures):
        record["classes"] = list(pictures.classes)
    else:
        record["captions"] = len(pictures.captions)
    record["rows"] = [{"r": row.r, **row.scores, **_cost(row)} for row in rows]
    contents = {"zeroshot.json": json.dumps(record, indent=1) + "\n", "zeroshot.md": table(rows)}
    for name, content in contents.items():
        with replacing(folder / name, "the results") as partial_file:
            partial_file.write_text(content, encoding="utf-8")
    merged = [row for row in rows if row.r is not None]
    plot = folder / "zeroshot.svg"
    shown = [name for name in rows[0].scores if name.endswith("1")]  # of the nearest
    with drawing(plot, (4.6, 3.2)) as (axis,):
        for name, colour in zip(shown, ("#0b6e4f", "#b5651d"), strict=False):
            axis.plot([row.gmacs for row in merged], [row.scores[name] for row in merged], marker="o", color=colour)
            for row in merged:
                axis.annotate(f"r = {row.r}", (row.gmacs, row.scores[name]), (4, 4), textcoords="offset points", size=8)
        axis.set_xlabel("GMACs per picture")
        if len(shown) == 1:
            axis.set_ylabel("zero-shot top-1, percent")
        else:
            axis.set_ylabel("recall of the nearest, percent")
            axis.legend([_TITLES[name].removesuffix(" %") for name in shown], fontsize=8)
    return [*(folder / name for name in contents), plot]


def _cost(row: ZeroShotRow) -> dict[str, Any]:
    return {name: getattr(row, name) for name in ("gmacs", "images_per_second", "saving_realised")}


def _load(
    file: Path, size: tuple[int, int], statistics: tuple[tuple[float, ...], tuple[float, ...]], whole: bool
) -> Tensor:
    return normalise(fit_picture(read_picture(file, str(file)), size, whole=whole), *statistics)


def _score(images: Tensor, texts: Tensor, pictures: Pictures | CaptionedPictures) -> dict[str, float]:
    """Returns ``ZeroShotRow.scores`` of embeddings ``[P, d]`` of pictures and ``[T, d]`` of texts, unit rows."""
    if isinstance(pictures, Pictures):
        right = torch.tensor(pictures.labels, device=images.device)[:, None]
        return _recall(
            "top", images, texts, lambda rows: right[rows] == torch.arange(len(texts), device=right.device), (1, 5)
        )
    owners = torch.tensor(pictures.owners, device=images.device)
    numbers = torch.arange(len(images), device=images.device)
    return {
        **_recall("image_to_text_", images, texts, lambda rows: numbers[rows, None] == owners, (1, 5, 10)),
        **_recall("text_to_image_", texts, images, lambda rows: owners[rows, None] == numbers, (1, 5, 10)),
    }


def _recall(
    name: str, queries: Tensor, keys: Tensor, right: Callable[[slice], Tensor], counts: Sequence[int]
) -> dict[str, float]:
    """Returns the percentage of queries with a right key among the K nearest, for each K of ``counts``.

    right: True for the right keys of some rows, ``[rows, keys]``. A key beats the nearest right one if it is nearer.
    """
    ranks = []
    for start in range(0, len(queries), _ROWS):
        rows = slice(start, start + _ROWS)
        scores = queries[rows] @ keys.T
        best = scores.masked_fill(~right(rows), -torch.inf).amax(1, keepdim=True)
        ranks.append((scores > best).sum(1))
    rank = torch.cat(ranks)
    return {f"{name}{k}": 100 * (rank < k).double().mean().item() for k in counts}
