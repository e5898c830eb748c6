"""The clips that a configuration names: of EntityWorld, or of list files on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from alt.data.clip_views import Clips
from alt.data.clips import ClipError, ClipFiles
from alt.data.few_shot import few_shot_indices
from alt.data.frame_cache import FrameCache
from alt.data.video import Video, as_video
from alt.errors import UserError, one_line

from .config import DataSection, TrainConfig
from .data_sets import read_named_set

if TYPE_CHECKING:
    from alt.entityworld.world import World

__all__ = [
    "Sources",
    "WorldClips",
    "check_root",
    "choose_clips",
    "open_list",
    "open_sources",
    "open_split",
    "open_world",
]


class WorldClips:
    """A split of an EntityWorld, ``frames`` frames per clip. :meth:`render` draws them, once."""

    def __init__(self, world: World, split: str, frames: int) -> None:
        self._world, self._split, self._count = world, world.split(split), frames
        self._videos: Tensor | None = None
        self.labels: Tensor = self._split.labels
        self.class_names: list[str] = list(self._split.class_names)

    def render(self) -> WorldClips:
        """Renders all clips and returns itself. Call it before other processes read clips, or each renders its own."""
        if self._videos is None:
            self._videos = self._world.render(self._split, frames=self._count).frames
        return self

    def take(self, index: int, make: Callable[[Video], Tensor], among: Tensor | None = None) -> tuple[Tensor, int]:
        """Returns ``make(video)`` of a clip, and its number."""
        videos = self.render()._videos
        assert videos is not None
        return make(as_video(videos[index])), index


class Sources(NamedTuple):
    """Clips of a run. chosen: int64, those of ``train`` to train on. world: the generated world of all these clips."""

    train: Clips
    chosen: Tensor
    validation: Clips | None
    world: World | None


def open_sources(config: TrainConfig) -> Sources:
    """Opens the clips of a training run. Clips of a generated world are not rendered yet.

    Raises:
        UserError: a split, folder or list that is not there, or cannot be read.
    """
    data, frames = config.data, config.model.frames
    world = None if data.kind == "frames" else open_world(data)
    name, held_out = (data.train_list, data.val_list) if world is None else (data.train_split, data.val_split)
    validation = _find_split(data, held_out, frames, world) if held_out else None
    train = _find_split(data, name, frames, world, labelled=config.task != "unlabelled", training=True)
    return Sources(train, choose_clips(config, train.labels), validation, world)


def open_world(data: DataSection) -> World:
    """Opens the generated world of a configuration."""
    from alt.entityworld.world import World

    try:
        return World(data.preset)
    except (ValueError, KeyError) as error:
        raise UserError(f"data: {one_line(error)}.") from None


def open_split(data: DataSection, name: str, frames: int, world: World | None) -> Clips:
    """Opens a split of a world, rendered, or a list file under ``data.root``."""
    found = _find_split(data, name, frames, world)
    return found.render() if isinstance(found, WorldClips) else found


def _find_split(
    data: DataSection, name: str, frames: int, world: World | None, *, labelled: bool = True, training: bool = False
) -> Clips:
    if world is not None:
        try:
            return WorldClips(world, name, frames)
        except (ValueError, KeyError) as error:
            raise UserError(f"data: {one_line(error)}.") from None
    return open_list(data, data.root, name, labelled=labelled, training=training)


def open_list(
    data: DataSection, root: str | None, list_file: str, *, labelled: bool = True, training: bool = False
) -> ClipFiles:
    """Opens a list file and its labels under ``root``, or the part of a set that ``data.sets`` describes.

    ``training``: other frames of its clips are read in every epoch.
    """
    cache = None
    if data.frame_cache is not None:
        cache = FrameCache(data.frame_cache, data.cache_gib, whole=training)
    how: dict[str, Any] = {"damaged": data.damaged, "labelled": labelled, "cache": cache}
    try:
        if data.sets is not None:
            return ClipFiles(read_named_set(data.sets, root, list_file), **how)
        return ClipFiles(list_file, data.labels, check_root(root), **how)
    except ClipError as error:
        raise UserError(f"data: {error}.") from None


def check_root(root: str | None) -> str:
    """Returns ``data.root`` if there is such a folder."""
    if root is None:
        raise UserError("data.root must name the folder of the clips where data.kind is frames.")
    if not Path(root).is_dir():
        raise UserError(f"data.root: there is no folder {root}.")
    return root


def choose_clips(config: TrainConfig, labels: Tensor) -> Tensor:
    """Returns the clips to train on: all, or ``data.shots`` per class; at most ``data.limit``."""
    chosen = torch.arange(len(labels))
    if config.data.shots is not None:
        try:
            chosen = torch.tensor(few_shot_indices(labels, config.data.shots, config.data.shots_seed))
        except ValueError as error:
            raise UserError(f"data.{one_line(error)}.") from None
    return chosen[: config.data.limit]
