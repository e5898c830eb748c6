"""From stored pixels to what CLIP's image towers expect."""

from __future__ import annotations

import torch
from torch import Tensor

# Channel statistics of CLIP's training data, for pictures in [0, 1].
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def normalise(frames: Tensor) -> Tensor:
    """uint8 (or floats in [0, 1]) ``[..., 3, H, W]`` -> float32, in [0, 1], then by CLIP's mean and deviation."""
    if frames.ndim < 3 or frames.shape[-3] != 3:
        raise ValueError(f"frames: [..., 3, H, W], got {list(frames.shape)}")
    mean, std = (torch.tensor(v, device=frames.device).view(3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    unit = frames.to(torch.float32) if frames.is_floating_point() else frames.to(torch.float32) / 255.0
    return (unit - mean) / std
