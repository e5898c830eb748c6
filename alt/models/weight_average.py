"""The mean of two models' weights: a fine-tuned model keeps more of what the original knew."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["average_weights"]


def average_weights(model: nn.Module, other: nn.Module, share: float) -> None:
    r"""Moves every parameter of ``model`` towards that of ``other``, in place.

    .. math:: \theta \leftarrow (1 - a)\,\theta + a\,\theta_{other}

    With a = 0 and a = 1 the result is bit for bit one of the two. Classes stay those of ``model``; if it holds its
    text tower, their texts are embedded with the new weights.

    Args:
        model: a video model, for example fine-tuned. other: one with the same parameters, for example before that.
        share: a in [0, 1]; MAXI evaluates with 0.2 of CLIP.

    Raises:
        ValueError: the share is outside [0, 1], or the models have other parameters. ``model`` is unchanged.

    Source: arXiv 2303.08914, section 4.2; arXiv 2109.01903 (WiSE-FT).
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share: expected a number in [0, 1], got {share}")
    here, there = dict(model.named_parameters()), dict(other.named_parameters())
    for name in {**here, **there}:
        if name not in here or name not in there:
            raise ValueError(f"other: expected a model with the same parameters, got {name} in one of the two alone")
        if here[name].shape != there[name].shape:
            shapes = f"{list(here[name].shape)} and {list(there[name].shape)}"
            raise ValueError(f"other: expected a model with the same parameters, got {name} of {shapes}")
    with torch.no_grad():
        for name, parameter in here.items():
            parameter.lerp_(there[name].to(parameter), share)
    video: Any = model
    if getattr(video, "text", None) is not None:
        video.refresh_texts()
