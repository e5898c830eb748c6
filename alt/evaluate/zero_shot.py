"""Zero-shot accuracy of a CLIP on a folder of pictures at several r, beside cost and speed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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

_BATCH = 64


class Pictures(NamedTuple):
    """Files, the number of each one's class, and the class names."""

    files: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]


class ZeroShotRow(NamedTuple):
    """One r. top1, top5: percent of the pictures. gmacs: 1e9 multiply-accumulates per picture.

    images_per_second: of the image tower alone, unpatched for r = None. saving_realised: share of the saving in
    operations that arrives in time; None where nothing is saved.
    """

    r: int | None
    top1: float
    top5: float
    gmacs: float
    images_per_second: float
    saving_realised: float | None


def list_pictures(folder: Path) -> Pictures:
    """Lists the pictures of a folder with one subfolder per class; ``_`` in a folder's name is a space of the class.

    Raises:
        ClipError: it is no such folder, or a class has no picture.
    """
    expected = "expected a folder with one folder of pictures per class"
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
    pictures: Pictures,
    r: Sequence[int],
    *,
    device: str = "cpu",
    seconds: float = 30.0,
    say: Callable[[str], None] = lambda line: None,
) -> list[ZeroShotRow]:
    """Returns a row for the unpatched model and one for each r.

    A picture's class is the one whose text, the mean over the model's templates, has the largest cosine with it.

    Args:
        loaded: of :func:`alt.models.clip.build_clip`. seconds: budget of the timing. say: receives lines of progress.

    Raises:
        ClipError: a picture cannot be read. ValueError: the text tower does not know a class name. TypeError: the image
            tower cannot be patched.
    """
    clip = loaded.clip.to(device).eval()
    texts = loaded.text_encoder().embed_classes(pictures.classes, loaded.templates).to(device)
    host, tower = find_tower(clip)
    labels = torch.tensor(pictures.labels, device=device)
    ranks: dict[int | None, list[Tensor]] = {value: [] for value in (None, *r)}
    for start in range(0, len(pictures.files), _BATCH):
        chosen = slice(start, start + _BATCH)
        images = torch.stack(
            [_load(file, host.image_size(tower), host.mean_std(tower)) for file in pictures.files[chosen]]
        )
        images = images.to(next(clip.parameters()))
        ranks[None].append(_rank(clip, images, texts, labels[chosen]))
        with patch_model(clip, 0) as handle:
            for value in r:
                handle.r = value
                ranks[value].append(_rank(clip, images, texts, labels[chosen]))
        say(f"{min(start + _BATCH, len(pictures.files))} of {len(pictures.files)} pictures")
    # r = 0 is always among the rows of a benchmark, after the unpatched one.
    speed = {row.r: row for row in benchmark(clip, batch_size=8, r=[v for v in r if v], seconds=seconds).rows}
    rows = []
    for state, found in ranks.items():
        rank, row = torch.cat(found), speed[state]
        top1, top5 = (100 * (rank < k).double().mean().item() for k in (1, 5))
        realised = None if row.saving_realised is None else row.saving_realised.median
        rows.append(ZeroShotRow(state, top1, top5, row.gmacs, row.images_per_second, realised))
    return rows


def table(rows: Sequence[ZeroShotRow]) -> str:
    """Returns the rows as a Markdown table."""
    head = ("r", "top-1 %", "top-5 %", "GMACs", "images/s", "saving realised")
    cells = [
        (
            *("unpatched" if row.r is None else row.r, row.top1, row.top5, f"{row.gmacs:.3g}"),
            *(
                f"{row.images_per_second:.4g}",
                None if row.saving_realised is None else f"{100 * row.saving_realised:.0f} %",
            ),
        )
        for row in rows
    ]
    return to_markdown(head, cells)


def write(rows: Sequence[ZeroShotRow], pictures: Pictures, folder: Path) -> list[Path]:
    """Writes zeroshot.json, .md and .svg into ``folder`` and returns their paths."""
    record = {
        "pictures": len(pictures.files),
        "classes": list(pictures.classes),
        "rows": [row._asdict() for row in rows],
    }
    contents = {"zeroshot.json": json.dumps(record, indent=1) + "\n", "zeroshot.md": table(rows)}
    for name, content in contents.items():
        with replacing(folder / name, "the results") as partial:
            partial.write_text(content, encoding="utf-8")
    merged = [row for row in rows if row.r is not None]
    plot = folder / "zeroshot.svg"
    with drawing(plot, (4.6, 3.2)) as (axis,):
        axis.plot([row.gmacs for row in merged], [row.top1 for row in merged], marker="o", color="#0b6e4f")
        for row in merged:
            axis.annotate(f"r = {row.r}", (row.gmacs, row.top1), (4, 4), textcoords="offset points", size=8)
        axis.set_xlabel("GMACs per picture")
        axis.set_ylabel("zero-shot top-1, percent")
    return [*(folder / name for name in contents), plot]


def _load(file: Path, size: tuple[int, int], statistics: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
    return normalise(fit_picture(read_picture(file, str(file)), size), *statistics)


def _rank(clip: nn.Module, images: Tensor, texts: Tensor, labels: Tensor) -> Tensor:
    """Returns how many classes beat the right one, for each image."""
    with torch.inference_mode():
        embedded = F.normalize(clip.encode_image(images).float(), dim=-1)  # type: ignore[operator]
    scores = embedded @ texts.float().T
    return (scores > scores.gather(1, labels[:, None])).sum(1)
