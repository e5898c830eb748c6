"""The clips that a configuration names: of EntityWorld, or of list files on disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from alt.data.clip_views import Clips
from alt.data.clips import ClipError, ClipFiles
from alt.data.few_shot import few_shot_indices
from alt.errors import UserError, one_line

from .config import DataSection, TrainConfig

if TYPE_CHECKING:
    from alt.entityworld.world import World

__all__ = ["Sources", "WorldClips", "choose_clips", "open_list", "open_sources", "open_split", "open_world"]


class WorldClips:
    """A split of an EntityWorld, rendered once, ``frames`` frames per clip."""

    def __init__(self, world: World, split: str, frames: int) -> None:
        from alt.entityworld.world import EntityWorldDataset

        data = EntityWorldDataset(world, split, frames=frames)
        self._videos: Tensor = data.frames
        self.labels: Tensor = data.labels
        self.class_names: list[str] = list(data.class_names)

    def video(self, index: int) -> Tensor:
        """Returns all frames of a clip, uint8 ``[T, 3, H, W]``."""
        return self._videos[index]


class Sources(NamedTuple):
    """Clips to train on and to validate with; world: the generated one they are of."""

    train: Clips
    validation: Clips | None
    world: World | None = None


def open_sources(config: TrainConfig) -> Sources:
    """Opens the clips of a training run.

    Raises:
        UserError: a split, folder or list that is not there, or cannot be read.
    """
    data, frames = config.data, config.model.frames
    world = None if data.kind == "frames" else open_world(data)
    train, held_out = (data.train_list, data.val_list) if world is None else (data.train_split, data.val_split)
    validation = open_split(data, held_out, frames, world) if held_out else None
    return Sources(open_split(data, train, frames, world), validation, world)


def open_world(data: DataSection) -> World:
    """Opens the generated world of a configuration."""
    from alt.entityworld.world import World

    try:
        return World(data.preset)
    except (ValueError, KeyError) as error:
        raise UserError(f"data: {one_line(error)}.") from None


def open_split(data: DataSection, name: str, frames: int, world: World | None) -> Clips:
    """Opens a split of a world, or a list file under ``data.root``."""
    if world is None:
        return open_list(data.root, name, data.labels)
    try:
        return WorldClips(world, name, frames)
    except (ValueError, KeyError) as error:
        raise UserError(f"data: {one_line(error)}.") from None


def open_list(root: str | None, list_file: str, labels: str) -> ClipFiles:
    """Opens a list file and its labels under ``data.root``."""
    if root is None:
        raise UserError("data.root must name the folder of the clips where data.kind is frames.")
    if not Path(root).is_dir():
        raise UserError(f"data.root: there is no folder {root}.")
    try:
        return ClipFiles(list_file, labels, root)
    except ClipError as error:
        raise UserError(f"data: {one_line(error)}.") from None


def choose_clips(config: TrainConfig, labels: Tensor) -> Tensor:
    """Returns the clips that are trained on: all, or ``data.shots`` per class; at most ``data.limit``."""
    chosen = torch.arange(len(labels))
    if config.data.shots is not None:
        try:
            chosen = torch.tensor(few_shot_indices(labels, config.data.shots, config.data.shots_seed))
        except ValueError as error:
            raise UserError(f"data.{one_line(error)}.") from None
    return chosen[: config.data.limit]
