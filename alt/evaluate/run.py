"""Runs a model over a dataset: logits of every view of every video, and their metrics."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from alt.errors import refuse_unordered
from alt.models.modes import evaluation_mode
from alt.models.video_model import VideoModel

from .feature_cache import EncodedBatch, FeatureCache
from .metrics import Result, VideoMetrics, multi_label_result
from .views import logits_of_tokens, logits_of_views, sum_of_softmax

__all__ = ["Collected", "collect_logits", "evaluate", "evaluating", "result_of", "run_batches"]


class Collected(NamedTuple):
    """logits ``[N, V, C]`` on the CPU, labels ``[N]``, or ``[N, C]`` of 0 and 1 where a video has several."""

    logits: Tensor
    labels: Tensor


def evaluate(
    model: nn.Module,
    dataset: Dataset[Any],
    *,
    classes: Sequence[str] | None = None,
    batch_size: int = 16,
    workers: int = 0,
    device: torch.device | str | None = None,
    precision: str = "fp32",
    features: FeatureCache | None = None,
    progress: Callable[[int, int], None] | None = None,
    **setting: Any,
) -> Result:
    """Evaluates ``model`` on ``dataset``, every video once, in evaluation mode (no noise, no dropout).

    Args:
        model: a video model. Its mode and device are restored at the end.
        dataset: items ``(clip, label)``, the clip ``[T, 3, H, W]`` or, for several views, ``[V, T, 3, H, W]``.
        classes: class names in the order of the logits; default ``model.classes``.
        batch_size: videos per batch. The last batch may be smaller and is not dropped.
        device: of the run; None: the model's.
        precision: "fp32", or "bf16" for autocast.
        features: keeps the tokens of clips; the dataset is then one of list files. None: nothing is kept.
        progress: called with (finished videos, total videos) after every batch.
        setting: kept with the result.

    Raises:
        ValueError: the dataset is empty, or logits or labels do not fit the classes.
    """
    refuse_unordered(classes, "classes")
    names = list(classes if classes is not None else getattr(model, "classes", ()))
    collected = collect_logits(
        model,
        dataset,
        batch_size=batch_size,
        workers=workers,
        device=device,
        precision=precision,
        features=features,
        progress=progress,
    )
    views = collected.logits.shape[1]
    return result_of(collected, names, views=views, precision=precision, **setting)


def result_of(collected: Collected, classes: Sequence[str], **setting: Any) -> Result:
    """Returns the metrics of collected logits; of labels ``[N, C]``, those of videos with several."""
    if collected.labels.dim() == 2:
        return multi_label_result(sum_of_softmax(collected.logits), collected.labels, classes, **setting)
    metrics = VideoMetrics(classes)
    metrics.update(sum_of_softmax(collected.logits), collected.labels)
    return metrics.compute(**setting)


def collect_logits(
    model: nn.Module,
    dataset: Dataset[Any],
    *,
    batch_size: int = 16,
    workers: int = 0,
    device: torch.device | str | None = None,
    precision: str = "fp32",
    features: FeatureCache | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Collected:
    """Returns logits of every view of every video, without softmax, so that a protocol can restrict the classes first.

    Arguments as in :func:`evaluate`.
    """
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision: expected 'fp32' or 'bf16', got '{precision}'")
    if len(dataset) == 0:  # type: ignore[arg-type]
        raise ValueError("no video was evaluated: the dataset is empty")
    found = run_batches(
        model,
        dataset,
        lambda clips: logits_of_views(model, clips, at_once=batch_size),
        lambda encoded: logits_of_tokens(model, encoded.parts, encoded.views),
        device=device,
        batch_size=batch_size,
        workers=workers,
        precision=precision,
        features=features,
        progress=progress,
    )
    return Collected(*found)


def run_batches(
    model: nn.Module,
    dataset: Dataset[Any],
    of_clips: Callable[[Tensor], Tensor],
    of_tokens: Callable[[EncodedBatch], Tensor],
    *,
    device: torch.device | str | None,
    batch_size: int,
    workers: int,
    precision: str,
    features: FeatureCache | None,
    progress: Callable[[int, int], None] | None,
) -> tuple[Tensor, Tensor]:
    """Returns what is computed of all videos, in float32, and their labels, both on the CPU.

    Args:
        of_clips: what is computed of clips. of_tokens: the same of their tokens, which a cache keeps. Both are called
            in evaluation mode. Others: as in :func:`evaluate`.

    Raises:
        TypeError: ``features`` are to be kept of a model without tokens, or of other clips than those of list files.
    """
    parts: list[Tensor] = []
    labels: list[Tensor] = []
    done, total = 0, len(dataset)  # type: ignore[arg-type]
    with evaluating(model, device) as place:
        batches: Iterable[tuple[Any, Any]]
        if features is not None:
            if not isinstance(model, VideoModel):
                raise TypeError(
                    f"features: a model of alt.create_model is expected where they are kept, got {type(model).__name__}"
                )
            kept = features.encode_batches(
                model, dataset, place, batch=batch_size, workers=workers, precision=precision
            )
            batches = ((encoded, encoded.labels) for encoded in kept)
        else:
            batches = DataLoader(dataset, batch_size=batch_size, num_workers=workers, generator=torch.Generator())
        for batch, target in batches:
            with torch.autocast(place.type, torch.bfloat16, enabled=precision == "bf16"):
                out = of_clips(batch.to(place)) if features is None else of_tokens(batch)
            parts.append(out.float().cpu())
            labels.append(torch.as_tensor(target).cpu())
            done += len(target)
            if progress is not None:
                progress(done, total)
    return torch.cat(parts), torch.cat(labels)


@contextlib.contextmanager
def evaluating(model: nn.Module, device: torch.device | str | None = None) -> Iterator[torch.device]:
    """Sets evaluation mode without gradients on ``device`` in the block; restores all modes and the device after."""
    first = next((p for p in model.parameters()), None)
    before = first.device if first is not None else torch.device("cpu")
    place = before if device is None else torch.device(device)
    model.to(place)
    try:
        with evaluation_mode(model), torch.no_grad():
            yield place
    finally:
        model.to(before)
