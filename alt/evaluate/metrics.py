"""Top-1, top-5, mean average precision, per-class accuracy and confusion, exact for any batch size.

A thin layer over torchmetrics, which also sums over the processes of a distributed run. All measures are in percent
except the confusion matrix, which counts.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassAveragePrecision,
    MulticlassConfusionMatrix,
    MultilabelAveragePrecision,
)

from alt.errors import refuse_unordered
from alt.files import read_json, replacing

__all__ = ["Result", "VideoMetrics", "mean_average_precision", "multi_label_result"]


@dataclass(frozen=True)
class Result:
    """The result of an evaluation.

    top1, top5: percent of the videos whose label is the best class, or among the five best (of all classes, if there
        are fewer). mean_average_precision: one-vs-rest average precision, mean over the classes that occur, percent.
    per_class: class name -> percent of its videos that were right, None for a class without a video.
    confusion: ``[C][C]`` counts, row = true class, column = best class. videos: their number.
    setting: of the run (views, r, checkpoint, seed, ...), plain values.

    Where videos have several labels, the best class, or one of the five, is right if it is among them, ``per_class`` is
    the average precision in percent, and there is no ``confusion``.
    """

    top1: float
    top5: float
    mean_average_precision: float
    per_class: dict[str, float | None]
    confusion: list[list[int]]
    videos: int
    setting: dict[str, Any] = field(default_factory=dict)

    @property
    def mean_class_accuracy(self) -> float:
        """Returns the mean of the per-class accuracies over the classes that occur, percent."""
        known = [value for value in self.per_class.values() if value is not None]
        return sum(known) / len(known)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "mean_class_accuracy": self.mean_class_accuracy}

    def save(self, path: str | Path) -> Path:
        """Writes the whole result as JSON."""
        with replacing(path, "the result") as partial:
            partial.write_text(json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Result:
        """Reads what :meth:`save` wrote.

        Raises:
            OSError: it cannot be read. ValueError: it is not a result.
        """
        record = read_json(path)
        names = {field.name for field in fields(cls)}
        if not isinstance(record, dict) or record.keys() - {"mean_class_accuracy"} != names:
            raise ValueError(f"{path}: not a result of this package")
        return cls(**{name: record[name] for name in names})

    def save_per_class(self, path: str | Path) -> Path:
        """Writes class, videos and percent right as CSV."""
        with (
            replacing(path, "the table") as partial,
            partial.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.writer(file)
            if not self.confusion:
                writer.writerow(["class", "average precision"])
                writer.writerows([name, "" if ap is None else f"{ap:.2f}"] for name, ap in self.per_class.items())
                return Path(path)
            writer.writerow(["class", "videos", "accuracy"])
            for (name, value), row in zip(self.per_class.items(), self.confusion, strict=True):
                writer.writerow([name, sum(row), "" if value is None else f"{value:.2f}"])
        return Path(path)


class VideoMetrics(nn.Module):
    """Collects scores batch by batch; :meth:`compute` returns the :class:`Result`.

    Counts are summed, not averages of batches, so a smaller last batch has its proper weight. Scores may be logits,
    probabilities or sums of probabilities over views. Only their order within a video matters, and for the average
    precision their order between videos.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        super().__init__()
        refuse_unordered(classes, "classes")
        self.classes = list(classes)
        count = len(self.classes)
        if count < 2:
            raise ValueError(f"classes: expected at least 2 names, got {count}")
        if len(set(self.classes)) != count:
            twice = next(name for name in self.classes if self.classes.count(name) > 1)
            raise ValueError(f"classes: expected distinct names, got '{twice}' more than once")
        self._top1 = MulticlassAccuracy(count, average="micro", validate_args=False)
        self._top5 = MulticlassAccuracy(count, average="micro", top_k=min(5, count), validate_args=False)
        self._confusion = MulticlassConfusionMatrix(count, validate_args=False)
        self._precision = _AveragePrecision(count)
        self.videos = 0

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Adds scores ``[B, C]``, floating point, and labels ``[B]``, integer class numbers."""
        count = len(self.classes)
        if scores.dim() != 2 or scores.shape[1] != count:
            raise ValueError(f"scores: expected shape [B, {count}], one column per class, got {list(scores.shape)}")
        if labels.shape != scores.shape[:1]:
            raise ValueError(f"labels: expected shape [{len(scores)}], got {list(labels.shape)}")
        if labels.is_floating_point() or labels.is_complex():
            raise TypeError(f"labels: expected class numbers of an integer dtype, got {labels.dtype}")
        if len(labels) == 0:
            return
        if int(labels.min()) < 0 or int(labels.max()) >= count:
            wrong = int(labels.min()) if int(labels.min()) < 0 else int(labels.max())
            raise ValueError(f"labels: expected class numbers from 0 to {count - 1}, got {wrong}")
        if not scores.isfinite().all():
            raise ValueError("scores: expected finite numbers, got NaN or infinity")
        scores = scores.detach().double() if scores.dtype == torch.float64 else scores.detach().float()
        labels = labels.long()
        self._top1.update(scores, labels)
        self._top5.update(scores, labels)
        self._confusion.update(scores, labels)
        self._precision.update(scores, labels)
        self.videos += len(labels)

    def compute(self, **setting: Any) -> Result:
        """Returns the result so far, together with ``setting``."""
        if self.videos == 0:
            raise ValueError("no video was evaluated: the dataset is empty")
        confusion = self._confusion.compute()
        totals = confusion.sum(dim=1)
        right = confusion.diagonal()
        per_class = {
            name: (100 * int(hit) / int(total) if int(total) else None)
            for name, hit, total in zip(self.classes, right, totals, strict=True)
        }
        return Result(
            top1=100 * float(self._top1.compute()),
            top5=100 * float(self._top5.compute()),
            mean_average_precision=100 * float(self._precision.compute()),
            per_class=per_class,
            confusion=confusion.tolist(),
            videos=int(confusion.sum()),
            setting=setting,
        )

    def reset(self) -> None:
        for metric in (self._top1, self._top5, self._confusion, self._precision):
            metric.reset()
        self.videos = 0


def mean_average_precision(scores: Tensor, targets: Tensor) -> float:
    """Returns the macro mean average precision of multi-label data in percent (Charades' measure).

    The mean leaves out classes without a positive.

    Args:
        scores: ``[N, C]``, higher is more likely. targets: ``[N, C]`` of 0 and 1.
    """
    if scores.shape != targets.shape or scores.dim() != 2:
        raise ValueError(
            f"scores and targets: expected one shape [N, C], got {list(scores.shape)} and {list(targets.shape)}"
        )
    positives = targets.sum(dim=0) > 0
    if not bool(positives.any()):
        raise ValueError("targets: expected at least one positive, got none")
    metric = MultilabelAveragePrecision(int(positives.sum()), average="macro", validate_args=False)
    # torchmetrics applies a float32 sigmoid to scores outside [0, 1], which makes large ones equal; ranks stay apart.
    return 100 * float(metric(_ranks(scores[:, positives]), targets[:, positives].long()))


def multi_label_result(scores: Tensor, targets: Tensor, classes: Sequence[str], **setting: Any) -> Result:
    """Returns the result of videos with several labels, see :class:`Result`.

    Args:
        scores: ``[N, C]``, higher is more likely. targets: ``[N, C]`` of 0 and 1. classes: C names.
    """
    if scores.shape != targets.shape or scores.dim() != 2 or scores.shape[1] != len(classes):
        raise ValueError(
            f"scores and targets: expected [N, {len(classes)}], got {list(scores.shape)} and {list(targets.shape)}"
        )
    right = targets.gather(1, scores.topk(min(5, len(classes)), dim=1).indices) > 0
    precisions = [
        mean_average_precision(scores[:, i : i + 1], targets[:, i : i + 1]) if bool(targets[:, i].any()) else None
        for i in range(len(classes))
    ]
    return Result(
        top1=100 * float(right[:, 0].double().mean()),
        top5=100 * float(right.any(1).double().mean()),
        mean_average_precision=mean_average_precision(scores, targets),
        per_class=dict(zip(classes, precisions, strict=True)),
        confusion=[],
        videos=len(scores),
        setting=setting,
    )


class _AveragePrecision(MulticlassAveragePrecision):
    """One-vs-rest average precision over the classes that occur, on the order of the scores alone."""

    def __init__(self, count: int) -> None:
        super().__init__(count, average="none", validate_args=False)

    def compute(self) -> Tensor:  # type: ignore[override]
        from torchmetrics.utilities.data import dim_zero_cat

        scores, labels = dim_zero_cat(self.preds), dim_zero_cat(self.target)
        targets = nn.functional.one_hot(labels, scores.shape[1])
        return torch.tensor(mean_average_precision(scores, targets) / 100)

    def update(self, preds: Tensor, target: Tensor) -> None:
        self.preds.append(preds)
        self.target.append(target)


def _ranks(scores: Tensor) -> Tensor:
    """Replaces every column by dense ranks in (0, 1), exactly representable, with the same order and ties."""
    columns = []
    for column in scores.T:
        _, inverse = column.unique(return_inverse=True)
        columns.append((inverse.double() + 1) / (len(column) + 1))
    return torch.stack(columns, dim=1)
