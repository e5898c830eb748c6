"""From the data section of a configuration to loaders: clips of the embedded world, or of list files on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from alt.data.seeds import derive_seed
from alt.errors import UserError, one_line

from .config import TrainConfig
from .mixing import build_transform
from .sampler import Draw, EvenSampler, StepSampler, steps_per_epoch


class Clips(Protocol):
    """Where clips come from. ``draw`` None: the one clip of evaluation; else it decides the frames that are taken."""

    labels: Tensor
    class_names: list[str]

    def frames(self, index: int, count: int, draw: int | None) -> Tensor:
        """uint8 ``[T, 3, H, W]``."""


class WorldClips:
    """A split of an embedded world, rendered once."""

    def __init__(self, world: Any, split: Any, frames: int) -> None:
        from alt.entityworld.world import EntityWorldDataset

        data = EntityWorldDataset(world, split, frames=frames)
        self._frames: Tensor = data.frames
        self.labels: Tensor = data.labels
        self.class_names: list[str] = list(data.class_names)

    def frames(self, index: int, count: int, draw: int | None) -> Tensor:
        return self._frames[index]


class Transformed(Dataset[tuple[Tensor, int]]):
    """Clips through a transform, by :class:`Draw`: what comes out is a function of (seed, turn, index)."""

    def __init__(self, clips: Clips, chosen: Tensor, frames: int, transform: Any, seed: int | None) -> None:
        self.clips, self.chosen, self.count, self.transform, self.seed = clips, chosen, frames, transform, seed

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, draw: Draw | int) -> tuple[Tensor, int]:
        index, turn = draw if isinstance(draw, tuple) else (draw, 0)
        empty = index < 0  # a place that only keeps the processes even: some clip, no label
        place = int(self.chosen[max(index, 0)])
        seed = None if self.seed is None else derive_seed("augmentation", seed=self.seed, epoch=turn, clip=place)
        clip = self.transform(self.clips.frames(place, self.count, seed), seed)
        return clip, -1 if empty else int(self.clips.labels[place])


class Sources(NamedTuple):
    train: Clips
    validation: Clips | None
    world: Any = None  # of kind entity_world


def open_sources(config: TrainConfig) -> Sources:
    """The clips that a configuration names.

    Raises:
        UserError: a split, folder or list that is not there, or cannot be read.
    """
    data, frames = config.data, config.model.frames
    if data.kind == "entity_world":
        from alt.entityworld.world import World

        try:
            world = World(data.preset)
            validation = WorldClips(world, data.val_split, frames) if data.val_split else None
            return Sources(WorldClips(world, data.train_split, frames), validation, world)
        except (ValueError, KeyError) as error:
            raise UserError(f"data: {one_line(error)}.") from None
    from .files import FileClips

    if data.root is None:
        raise UserError("data.root must name the folder of the clips where data.kind is frames.")
    root = Path(data.root)
    train = FileClips(root, data.train_list, data.labels)
    return Sources(train, FileClips(root, data.val_list, data.labels) if data.val_list else None)


class ClipData(LightningDataModule):
    """Loaders of a run. Steps, batches and augmentation do not depend on the number of processes or workers."""

    def __init__(self, config: TrainConfig, sources: Sources) -> None:
        super().__init__()
        self.config, self.sources = config, sources
        self.chosen = choose(config, sources.train.labels)
        train = build_transform(config, train=True)
        self.train_set = Transformed(sources.train, self.chosen, config.model.frames, train, config.seed)
        self.val_set = None
        if sources.validation is not None:
            everything = torch.arange(len(sources.validation.labels))[: config.data.limit]
            plain = build_transform(config, train=False)
            self.val_set = Transformed(sources.validation, everything, config.model.frames, plain, None)

    @property
    def class_names(self) -> list[str]:
        return self.sources.train.class_names

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(len(self.train_set), self.config.data.batch_size)

    def train_dataloader(self) -> DataLoader[Any]:
        trainer = self.trainer
        assert trainer is not None
        sampler = StepSampler(
            len(self.train_set),
            self.config.data.batch_size,
            seed=self.config.seed,
            parts=self.config.trainer.accumulate,
            rank=trainer.global_rank,
            world=trainer.world_size,
            start=lambda: trainer.global_step,
        )
        return self._loader(self.train_set, sampler)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        trainer = self.trainer
        if self.val_set is None or trainer is None:
            return []
        share = self.config.data.batch_size // (self.config.trainer.accumulate * trainer.world_size)
        sampler = EvenSampler(len(self.val_set), max(1, share), rank=trainer.global_rank, world=trainer.world_size)
        return self._loader(self.val_set, sampler)

    def _loader(self, dataset: Dataset[Any], sampler: Any) -> DataLoader[Any]:
        workers = self.config.data.workers
        return DataLoader(
            dataset,
            batch_sampler=sampler,
            num_workers=workers,
            persistent_workers=False,
            pin_memory=torch.cuda.is_available(),
            # the workers' own generators come from here; nothing reads them, but the global one must not be used up
            generator=torch.Generator().manual_seed(self.config.seed),
        )


def choose(config: TrainConfig, labels: Tensor) -> Tensor:
    """The clips that are trained on: all, ``data.shots`` of every class, at most ``data.limit``."""
    chosen = torch.arange(len(labels))
    if config.data.shots is not None:
        from .mixing import few_shot

        chosen = few_shot(labels, config.data.shots, config.data.shots_seed)
    return chosen[: config.data.limit]
