"""Several views of one video, and the sum of their scores.

A view is one spatial crop of one temporal clip. Tables print "frames x spatial crops x temporal clips". A video's score
is the sum over its views of the softmax of their logits, as in X-CLIP's code, which the ALT paper's protocols follow.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from alt.models.region_encoder import Tokens

__all__ = ["Views", "logits_of_tokens", "logits_of_views", "sum_of_softmax"]


class Views(NamedTuple):
    """The views of a video: ``crops`` spatial crops (1: centre, 3: along the longer side) of each of ``clips`` temporal
    clips."""

    crops: int = 1
    clips: int = 1

    @property
    def total(self) -> int:
        return self.crops * self.clips

    def __str__(self) -> str:
        return f"{self.crops}x{self.clips}"

    @classmethod
    def parse(cls, text: str) -> Views:
        """Reads ``"1x3"`` (spatial crops x temporal clips), or ``"8x1x3"``, as tables print it, frames first."""
        match = re.fullmatch(r"(?:\d+\s*[x×]\s*)?(\d+)\s*[x×]\s*(\d+)", text.strip())
        if match is None:
            raise ValueError(f"views: expected spatial crops x temporal clips such as 1x3, got '{text}'")
        crops, clips = int(match[1]), int(match[2])
        if crops not in (1, 3):
            raise ValueError(f"views: expected 1 or 3 spatial crops, got {crops}")
        if clips < 1:
            raise ValueError(f"views: expected at least 1 temporal clip, got {clips}")
        return cls(crops, clips)


def sum_of_softmax(logits: Tensor) -> Tensor:
    """Returns ``score_c = sum_v softmax(logits_v)_c``, ``[B, C]`` in float32 or float64.

    Logits are ``[B, V, C]``, or ``[B, C]`` for one view.
    """
    if logits.dim() not in (2, 3):
        raise ValueError(f"logits: expected shape [B, C] or [B, V, C], got {list(logits.shape)}")
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    views = logits if logits.dim() == 3 else logits[:, None]
    return views.softmax(dim=-1, dtype=wide).sum(dim=1)


def logits_of_views(model: nn.Module, clips: Tensor, *, at_once: int | None = None) -> Tensor:
    """Returns logits ``[B, V, C]`` of every view.

    Args:
        model: a video model. For ``[N, T, 3, H, W]`` it returns logits ``[N, C]``, or a tuple with ``.logits``.
        clips: ``[B, V, T, 3, H, W]``, or ``[B, T, 3, H, W]`` for one view.
        at_once: the largest number of views per pass, to limit memory; None: all.
    """
    if clips.dim() == 5:
        clips = clips[:, None]
    if clips.dim() != 6:
        raise ValueError(f"clips: expected shape [B, T, 3, H, W] or [B, V, T, 3, H, W], got {list(clips.shape)}")
    batch, views = clips.shape[:2]
    flat = clips.flatten(0, 1)
    parts = [_logits(model, part) for part in (flat.split(at_once) if at_once else (flat,))]
    return torch.cat(parts).unflatten(0, (batch, views))


def logits_of_tokens(model: Any, parts: Sequence[Tokens], views: int) -> Tensor:
    """Returns logits ``[B, V, C]`` as :func:`logits_of_views` does, of what the model's tower made of the views.

    Args:
        model: a :class:`alt.models.video_model.VideoModel`. parts: tokens of the B V views, as they passed the tower.
        views: V.
    """
    return torch.cat([model.forward_tokens(part).logits for part in parts]).unflatten(0, (-1, views))


def _logits(model: nn.Module, clips: Tensor) -> Tensor:
    out = model(clips)
    return out if isinstance(out, Tensor) else out.logits
