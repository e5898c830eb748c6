"""Opens a trained model and a list of clips, and sweeps r for the model on these clips."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from alt.data.clip_views import ClipViews
from alt.data.clips import ClipFiles
from alt.errors import UsageError, UserError, one_line
from alt.models.video_model import VideoModel

from .tradeoff import Point, Tradeoff, rows_of
from .views import Views

__all__ = ["at_r", "clip_files", "open_model", "sweep"]


def open_model(path: str | Path, device: str | torch.device = "cpu", frames: int | None = None) -> VideoModel:
    """Opens the video model of a .safetensors file, or of a run's folder with model.safetensors, in evaluation mode.

    Raises:
        UserError: there is no model, or it cannot be read.
    """
    from alt.models.weights import load_model, model_file

    path = model_file(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; expected a .safetensors file or the folder of a run that ended.")
    if path.suffix == ".ckpt":
        raise UserError(f"{path}: this file only resumes training; a run writes model.safetensors when it ends.")
    try:
        place = torch.device(device)
        if place.type == "cuda" and not torch.cuda.is_available():
            raise UserError("--device cuda: this machine has no CUDA device that torch can use.")
        return load_model(path, place, frames=frames).eval()
    except UserError:
        raise
    except (ValueError, TypeError, KeyError, OSError, RuntimeError) as error:
        reason = one_line(error, 300).removeprefix(str(path)).removeprefix(":").strip()
        raise UserError(f"{path}: not a model that can be used here ({reason}).") from None


def clip_files(
    model: VideoModel,
    data: str | Path,
    labels: str | Path | None = None,
    views: str = "1x1",
    root: str | Path | None = None,
) -> ClipViews:
    """Opens a list of clips with the frames and size of ``model``; arguments as in :class:`alt.data.clips.ClipFiles`.

    Raises:
        UserError: a file cannot be read, or the classes differ from the model's.
    """
    try:
        wanted = Views.parse(views)
        files = ClipFiles(data, labels, root)
    except ValueError as error:
        raise UserError(f"{error}.") from None
    if not model.classes:
        raise UserError("The checkpoint has no classes: set_classes was never called on it.")
    check_classes(files.class_names if labels is not None else None, model.classes, str(labels))
    largest = int(files.labels.max())
    if largest >= len(model.classes):
        raise UserError(f"{data}: label {largest}, but the checkpoint has {len(model.classes)} classes.")
    size = model.backbone.image_size[0]
    return ClipViews(files, model.config.frames, size, crops=wanted.crops, clips=wanted.clips)


def check_classes(there: Sequence[str] | None, here: Sequence[str], where: str) -> None:
    """Raises UserError if the classes of ``where`` differ from the checkpoint's; None: ``where`` names no classes."""
    if there is None or list(there) == list(here):
        return
    why = f"{len(there)} there, {len(here)} in the checkpoint"
    for number, (a, b) in enumerate(zip(there, here, strict=False)):
        if a != b:
            why = f"number {number} is '{a}' there and '{b}' in the checkpoint"
            break
    raise UserError(f"{where}: the classes are not those of the checkpoint: {why}.")


def at_r(model: VideoModel, r: Any, inflection: float = 0.0) -> VideoModel:
    """Returns a model with the same (shared) weights that merges another number of tokens."""
    memo = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    changed = copy.deepcopy(model, memo)
    try:
        if inflection and isinstance(r, int) and r > 0:
            from alt.patch.schedule import tilt

            r = tilt(r, inflection, model.backbone.num_blocks)
        changed.r = r
    except (ValueError, TypeError) as error:
        raise UsageError(f"--r: {one_line(error, 300)}.") from None
    return changed


def sweep(
    model: VideoModel,
    dataset: Any,
    r: Sequence[int],
    *,
    inflections: Sequence[float] = (0.0, -1.0),
    batch_size: int = 8,
    device: str | torch.device = "cpu",
    measure: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> Tradeoff:
    """Measures the trade-off of one checkpoint at test time. ``trained_r`` is the r it was saved with."""
    from .run import evaluate  # torchmetrics is slow to import, and opening a model needs none of it

    saved = model.config.r
    trained = saved if isinstance(saved, int) else None
    name = type(model).__name__.removesuffix("Model") + f" {model.config.backbone}"
    points = [Point(name, value, slope, trained) for slope in inflections for value in r if value or not slope]
    found = {}
    for point in points:
        say(f"r = {point.r}, inflection {point.inflection:g}")
        result = evaluate(at_r(model, point.r, point.inflection), dataset, batch_size=batch_size, device=device)
        found[point] = [result.top1]
    rows = rows_of(
        found, lambda point: at_r(model, point.r, point.inflection), clips=batch_size, device=device, measure=measure
    )
    setting = {"data": f"{len(dataset)} clips of {len(model.classes)} classes", "trained at r": saved, "seeds": 1}
    return Tradeoff(tuple(rows), setting)
