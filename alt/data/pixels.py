"""Conversion between stored pixels and the input of an image tower."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

# Channel statistics of CLIP's training data, for pictures in [0, 1].
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def normalise(frames: Tensor, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD) -> Tensor:
    """Returns pictures as a tower expects them: scaled to [0, 1], then ``(x - mean) / std`` per channel, float32.

    Args:
        frames: uint8, or floats in [0, 1], ``[..., 3, H, W]``. mean, std: of the tower's training data, per channel.

    Raises:
        ValueError: the third dimension from the end does not have three channels.
    """
    if frames.ndim < 3 or frames.shape[-3] != 3:
        raise ValueError(f"frames: expected [..., 3, H, W], got {list(frames.shape)}")
    unit = frames.to(torch.float32) if frames.is_floating_point() else frames.to(torch.float32) / 255.0
    return (unit - _per_channel(mean, frames)) / _per_channel(std, frames)


def denormalise(frames: Tensor, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD) -> Tensor:
    """Reverses :func:`normalise`: returns uint8 pictures ``[..., 3, H, W]``, values rounded."""
    unit = frames.to(torch.float32) * _per_channel(std, frames) + _per_channel(mean, frames)
    return unit.clamp(0, 1).mul(255.0).round().to(torch.uint8)


def fit_picture(picture: np.ndarray, size: tuple[int, int], *, whole: bool = False) -> Tensor:
    """Returns a picture as a tower sees it: the largest centred part of its proportions, resized, uint8 ``[3, H, W]``.

    Args:
        picture: uint8 ``[H, W, 3]``. size: height and width of the result. whole: the whole picture is resized,
            whatever its proportions.
    """
    from PIL import Image, ImageOps

    fit = Image.Image.resize if whole else ImageOps.fit
    fitted = fit(Image.fromarray(picture), size[::-1], Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1)


def _per_channel(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(tuple(values), dtype=torch.float32, device=like.device).view(3, 1, 1)
