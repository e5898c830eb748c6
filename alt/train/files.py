"""Clips of a list file as a source for training and validation."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from alt.data.clips import ClipError, read_clip, read_labels, read_list
from alt.data.sampling import sample_test, sample_train
from alt.errors import UserError, one_line


class FileClips:
    """Clips of a list file; lists and labels are relative to ``root`` unless absolute.

    Raises:
        UserError: a list or label file that is missing or damaged.
    """

    def __init__(self, root: Path, list_file: str, labels: str) -> None:
        if not root.is_dir():
            raise UserError(f"data.root: there is no folder {root}.")
        try:
            self.class_names = read_labels(root / labels)
            self.entries = read_list(root / list_file, root, self.class_names)
        except ClipError as error:
            raise UserError(f"data: {one_line(error)}.") from None
        self.labels = torch.tensor([entry.label for entry in self.entries])

    def frames(self, index: int, count: int, draw: int | None) -> Tensor:
        """``count`` frames: a random one of every segment, decided by ``draw``, or the middle ones without it."""
        video = read_clip(self.entries[index].path)
        if draw is None:
            return video[sample_test(len(video), count)]
        return video[sample_train(len(video), count, torch.Generator().manual_seed(draw))]
