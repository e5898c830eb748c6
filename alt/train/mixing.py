"""The augmentation section applied: clips to model inputs, labels to soft targets."""

from __future__ import annotations

import torch
from torch import Tensor

from alt.data.augment import ClipAugment, Mix
from alt.data.pixels import normalise
from alt.data.sampling import crop_offsets, resize_short_side
from alt.errors import UserError, one_line

from .config import AugmentationSection, TrainConfig


class ClipTransform:
    """uint8 frames ``[T, 3, H, W]`` and a seed to a float32 model input; the seed decides the augmentation, if any.

    Without crops of several scales the short side is resized to ``resize`` and the centre taken, as in evaluation;
    clips of the embedded world have the right size already (``size`` None).
    """

    def __init__(self, size: int | None, resize: int, augmentation: AugmentationSection | None) -> None:
        self.size, self.resize, self.settings = size, resize, augmentation

    def __call__(self, frames: Tensor, seed: int | None) -> Tensor:
        size = self.size or frames.shape[-1]
        a = self.settings
        if self.size is not None and (a is None or a.crop_scales is None):
            frames = resize_short_side(frames, self.resize)
            top, left = crop_offsets(frames.shape[-2], frames.shape[-1], size)[0]
            frames = frames[..., top : top + size, left : left + size]
        if a is not None and (a.crop_scales is not None or a.flip or a.color_jitter or a.grayscale):
            assert seed is not None
            augment = ClipAugment(
                size, scales=a.crop_scales or (1.0,), flip=a.flip, jitter=a.color_jitter, gray=a.grayscale
            )
            frames = augment(frames, torch.Generator().manual_seed(seed))
        return normalise(frames)


def build_transform(config: TrainConfig, train: bool) -> ClipTransform:
    size = config.data.size if config.data.kind == "frames" else None
    return ClipTransform(size, config.data.resize, config.augmentation if train else None)


def build_mix(settings: AugmentationSection, classes: int) -> Mix:
    """Mixup or CutMix of a batch, and label smoothing."""
    return Mix(classes, settings.mixup, settings.cutmix, settings.switch, smoothing=settings.label_smoothing)


def few_shot(labels: Tensor, shots: int, seed: int) -> Tensor:
    """Indices of ``shots`` clips of every class."""
    from alt.data.few_shot import few_shot_indices

    try:
        return torch.tensor(few_shot_indices(labels, shots, seed))
    except ValueError as error:
        raise UserError(f"data.{one_line(error)}.") from None
