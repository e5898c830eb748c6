"""Test clips as a model reads them: all views of every video, normalised as CLIP expects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from .clips import ClipFiles, naming
from .pixels import normalise
from .sampling import make_views
from .video import Video

__all__ = ["ClipViews", "Clips", "name_of"]


class Clips(Protocol):
    """A source of clips: list files (:class:`alt.data.clips.ClipFiles`) or a generated world."""

    labels: Tensor
    class_names: list[str]

    def take(self, index: int, make: Callable[[Video], Tensor], among: Tensor | None = None) -> tuple[Tensor, int]:
        """Returns ``make(video)`` of a clip and the clip's number, which is another one if this one is damaged."""


def name_of(source: Clips, index: int) -> str:
    """Returns what a message calls a clip: its path, or its number in a generated world."""
    return source.name(index) if isinstance(source, ClipFiles) else f"clip {index}"


class ClipViews(torch.utils.data.Dataset[tuple[Tensor, int | Tensor]]):
    """Items (clip float32, label) of test clips; where clips have several labels, a row of 0 and 1 per class.

    A single view is ``[T, 3, size, size]``: the middle frame of every segment, centre crop. Several views are
    ``[clips * crops, T, 3, size, size]``. A video shorter than T repeats frames in order.

    Args:
        source: the videos. frames: T. size: side of the input in pixels.
        crops, clips: spatial crops and temporal clips of a video. resize, stride: see
            :func:`alt.data.sampling.make_views`.
    """

    def __init__(
        self,
        source: Clips,
        frames: int,
        size: int,
        *,
        crops: int = 1,
        clips: int = 1,
        resize: int | None = None,
        stride: int | None = None,
    ) -> None:
        self.source, self.frames, self.size = source, frames, size
        self.crops, self.clips, self.resize, self.stride = crops, clips, resize, stride
        self.labels, self.class_names = source.labels, source.class_names
        self.targets = source.targets if isinstance(source, ClipFiles) else None

    def __len__(self) -> int:
        return len(self.labels)

    def describe(self) -> list[str]:
        """Returns lines on the clips read so far that are shorter than T frames, or damaged and replaced."""
        return self.source.describe(self.frames) if isinstance(self.source, ClipFiles) else []

    @property
    def replaced(self) -> int:
        """Returns the number of clips that were damaged and replaced so far."""
        return len(self.source.replaced) if isinstance(self.source, ClipFiles) else 0

    def __getitem__(self, index: int) -> tuple[Tensor, int | Tensor]:
        with naming(name_of(self.source, index)):
            views, place = self.source.take(index, self._make_views)
            clip = normalise(views)
        label = int(self.labels[place]) if self.targets is None else self.targets[place]
        return (clip[0] if len(clip) == 1 else clip), label

    def _make_views(self, video: Video) -> Tensor:
        return make_views(
            video,
            self.frames,
            self.size,
            crops=self.crops,
            clips=self.clips,
            resize=self.resize,
            stride=self.stride,
        )
