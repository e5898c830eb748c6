"""Loaders of the clips of a run."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from alt.data.augment import ClipAugment
from alt.data.clip_views import Clips, name_of
from alt.data.clips import ClipFiles, naming
from alt.data.pixels import normalise
from alt.data.sampling import crop_offsets, resize_short_side, take_frames
from alt.data.seeds import derive_seed
from alt.errors import UserError

from .config import AugmentationSection, TrainConfig
from .objective import ClipBatch
from .sampler import EvenSampler, SampleIndex, StepSampler, steps_per_epoch
from .sources import WorldClips, open_sources


class ClipTransform:
    """Turns uint8 frames ``[T, 3, H, W]`` into a float32 model input; a seed decides the augmentation, if any.

    Without multi-scale crops, the short side is resized to ``resize`` and the centre is cropped, as in evaluation.
    Generated clips already have the right size (``size`` None).
    """

    def __init__(self, size: int | None, resize: int, augmentation: AugmentationSection | None) -> None:
        self.size, self.resize, self.settings = size, resize, augmentation

    def __call__(self, frames: Tensor, seed: int | None) -> Tensor:
        size = self.size or frames.shape[-1]
        a = self.settings
        if self.size is not None and (a is None or a.crop_scales is None):
            frames = resize_short_side(frames, self.resize)
            top, left = crop_offsets(frames.shape[-2], frames.shape[-1], size)[0]
            frames = frames[..., top : top + size, left : left + size]
        if a is not None and (a.crop_scales is not None or a.flip or a.color_jitter or a.grayscale):
            assert seed is not None
            augment = ClipAugment(
                size, scales=a.crop_scales or (1.0,), flip=a.flip, jitter=a.color_jitter, gray=a.grayscale
            )
            frames = augment(frames, torch.Generator().manual_seed(seed))
        return normalise(frames)


class ClipDataset(Dataset[ClipBatch]):
    """Clips through a transform, by :class:`SampleIndex`: each item is a function of (seed, epoch, clip).

    stride: of dense sampling, None: sparse (:func:`alt.data.sampling.take_frames`)."""

    def __init__(
        self,
        clips: Clips,
        chosen: Tensor,
        frames: int,
        transform: ClipTransform,
        seed: int | None,
        stride: int | None = None,
    ) -> None:
        self.clips, self.chosen, self.count, self.transform, self.seed = clips, chosen, frames, transform, seed
        self.stride = stride

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: SampleIndex | int) -> ClipBatch:
        """Returns one clip ``[T, 3, H, W]``, its label and its place in the list, as a batch without its dimension."""
        clip, epoch = index if isinstance(index, tuple) else (index, 0)
        empty = clip < 0  # keeps the processes even: any clip, no label
        place = int(self.chosen[max(clip, 0)])
        seed = None if self.seed is None else derive_seed("augmentation", seed=self.seed, epoch=epoch, clip=place)
        with naming(name_of(self.clips, place)):
            taken, place = self.clips.take(
                place, lambda video: take_frames(video, self.count, seed, self.stride), self.chosen
            )
            pixels = self.transform(taken, seed)
        label = -1 if empty else int(self.clips.labels[place])
        return ClipBatch(pixels, label, place)  # type: ignore[arg-type]  # the loader stacks them to tensors


class ClipData(LightningDataModule):
    """Loaders of a run. Steps, batches and augmentation do not depend on the number of processes or workers.

    Raises:
        UserError: a split, folder or list is missing or cannot be read.
    """

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self.config = config
        self.sources = open_sources(config)
        self.class_names, self.world = self.sources.train.class_names, self.sources.world
        if isinstance(self.sources.train, ClipFiles) and self.sources.train.targets is not None:
            raise UserError("data: its clips have several labels each; such a set can be evaluated, not trained on.")
        if len(self.class_names) < 2:
            raise UserError(f"data.labels: at least two classes are expected, got {len(self.class_names)}.")
        data, frames, seed = config.data, config.model.frames, config.seed
        size = data.size if data.kind == "frames" else None
        augment = ClipTransform(size, data.resize, config.augmentation)
        self.train_set = ClipDataset(self.sources.train, self.sources.chosen, frames, augment, seed, data.stride)
        self._count_steps()
        self.val_set = None
        if (validation := self.sources.validation) is not None:
            everything = torch.arange(len(validation.labels))[: data.limit]
            plain = ClipTransform(size, data.resize, None)
            self.val_set = ClipDataset(validation, everything, frames, plain, None, data.stride)

    def _count_steps(self) -> None:
        self.steps_per_epoch = steps_per_epoch(len(self.train_set), self.config.data.batch_size)
        self.total_steps, _ = self.config.schedule.length(self.steps_per_epoch)

    def keep_clips(self, numbers: Tensor) -> None:
        """Trains on some clips only: int64, their numbers in the list."""
        self.train_set.chosen = numbers
        self._count_steps()

    def setup(self, stage: str) -> None:
        """Renders the clips of a generated world, only once the model is built, so that its errors come first."""
        for source in (self.sources.train, self.sources.validation):
            if isinstance(source, WorldClips):
                source.render()

    def describe_clips(self) -> list[str]:
        """Returns lines on clips with fewer frames than the model reads, on damaged ones, and on cached frames."""
        lists = [source for source in (self.sources.train, self.sources.validation) if isinstance(source, ClipFiles)]
        lines = [line for source in lists for line in source.describe(self.config.model.frames)]
        return lines + [line for source in lists for line in source.describe_cache()]

    def train_dataloader(self) -> DataLoader[Any]:
        trainer = self.trainer
        assert trainer is not None
        sampler = StepSampler(
            len(self.train_set),
            self.config.data.batch_size,
            seed=self.config.seed,
            accumulate=self.config.trainer.accumulate,
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
            worker_init_fn=_outlive_signals,
            persistent_workers=False,
            pin_memory=torch.cuda.is_available(),
            # Unused, but without it DataLoader would draw from the global generator.
            generator=torch.Generator().manual_seed(self.config.seed),
        )


def _outlive_signals(worker: int) -> None:
    """Leaves SIGTERM and SIGUSR1 to the process that trains, which needs clips until its step and checkpoint are done.

    Schedulers send them to all processes of a job. A loading process ends when the process that started it sends one.
    """
    trainer = multiprocessing.parent_process()
    if trainer is None or not hasattr(signal, "sigwaitinfo"):  # macOS: the sender is unknown
        return
    numbers = {signal.SIGTERM, signal.SIGUSR1}
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    threading.Thread(target=_obey, args=(trainer.pid, numbers), daemon=True).start()


def _obey(sender: int, numbers: set[signal.Signals]) -> None:
    while signal.sigwaitinfo(numbers).si_pid != sender:
        pass
    os._exit(0)
