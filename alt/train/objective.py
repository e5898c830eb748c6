"""What a training step of a video model minimises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from alt.data.augment import Mix
from alt.data.seeds import derive_seed, make_generator

from .config import AugmentationSection

__all__ = ["ClipBatch", "Objective", "SoftCrossEntropy", "StepLoss", "soft_cross_entropy"]


class ClipBatch(NamedTuple):
    """clips: ``[B, T, 3, H, W]``. labels: int64 ``[B]``, -1 for an empty place in validation. numbers: int64 ``[B]``,
    the place of each clip in its list; None where clips have no list."""

    clips: Tensor
    labels: Tensor
    numbers: Tensor | None = None


class StepLoss(NamedTuple):
    """loss: to be minimised, 0-d. hits: share of clips whose class is found, None where there are no classes."""

    loss: Tensor
    hits: Tensor | None


class Objective(ABC):
    """The loss of a batch. An object, so that it may hold what belongs to the clips (texts by their numbers)."""

    @abstractmethod
    def __call__(self, model: Any, batch: ClipBatch, seed: int) -> StepLoss:
        """Returns the loss of ``batch``; everything random in it is a function of ``seed``."""


class SoftCrossEntropy(Objective):
    """Cross-entropy with the labels, which mixup, cutmix and label smoothing make soft.

    Args:
        classes: C. augmentation: how batches are mixed.
    """

    def __init__(self, classes: int, augmentation: AugmentationSection) -> None:
        a = augmentation
        self.mix = Mix(classes, a.mixup, a.cutmix, a.switch, smoothing=a.label_smoothing)

    def __call__(self, model: Any, batch: ClipBatch, seed: int) -> StepLoss:
        clips, targets = self.mix(batch.clips, batch.labels, make_generator("mix", seed=seed))
        noise_seed = torch.tensor(derive_seed("noise", seed=seed), dtype=torch.int64, device=clips.device)
        logits = model(clips, seed=noise_seed).logits
        hits = (logits.detach().argmax(-1) == targets.argmax(-1)).float().mean()
        return StepLoss(soft_cross_entropy(logits, targets), hits)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Returns ``-mean_n sum_c t_nc log softmax(logits)_nc``, in float32; logits and targets ``[B, C]``."""
    return -(targets.float() * F.log_softmax(logits.float(), dim=-1)).sum(-1).mean()
