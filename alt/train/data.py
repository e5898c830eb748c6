"""From the clips of a run to loaders."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from alt.data.clip_views import Clips
from alt.data.clips import ClipFiles
from alt.data.sampling import take_frames
from alt.data.seeds import derive_seed

from .config import TrainConfig
from .mixing import build_transform
from .sampler import Draw, EvenSampler, StepSampler, steps_per_epoch
from .sources import Sources


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
        clip = self.transform(take_frames(self.clips.video(place), self.count, seed), seed)
        return clip, -1 if empty else int(self.clips.labels[place])


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

    def describe_short(self) -> list[str]:
        """Returns a line on each list file with clips that have fewer frames than the model reads."""
        lists = [source for source in (self.sources.train, self.sources.validation) if isinstance(source, ClipFiles)]
        return [line for source in lists if (line := source.describe_short(self.config.model.frames)) is not None]

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
