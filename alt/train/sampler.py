"""The clips of each step, as a pure function of (seed, step), so that a run can begin at any step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Sampler

from alt.data.seeds import make_generator
from alt.errors import UserError


class SampleIndex(NamedTuple):
    """One clip of one step. ``epoch`` counts earlier uses of the clip, and so decides its augmentation.

    Clip -1 is an empty place, so that all processes get the same number.
    """

    clip: int
    epoch: int = 0


def batches(length: int, batch_size: int, seed: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields (clips, epochs), int64 ``[batch_size]`` each, of the steps ``start``, ``start + 1``, ... without end.

    The clips form an endless stream of permutations of ``length`` clips, one per epoch. Step s takes the clips
    [s B, (s + 1) B) of this stream.
    """
    current, permutation = -1, torch.empty(0, dtype=torch.int64)
    first = start * batch_size
    while True:
        clips, epochs, missing = [], [], batch_size
        while missing:
            epoch, place = divmod(first, length)
            if epoch != current:
                generator = make_generator("order", seed=seed, epoch=epoch)
                current, permutation = epoch, torch.randperm(length, generator=generator)
            part = permutation[place : place + missing]
            clips.append(part)
            epochs.append(torch.full_like(part, epoch))
            first, missing = first + len(part), missing - len(part)
        yield torch.cat(clips), torch.cat(epochs)


class StepSampler(Sampler[list[SampleIndex]]):
    """Batches of one process, from :func:`batches`.

    A step is split into ``accumulate`` batches, and each batch among ``world`` processes, so the clips of a step depend
    on neither.

    Args:
        length: clips. batch_size: of one step, all processes and accumulated batches together. seed: of the order.
        accumulate, rank, world: batches per step, number of this process, number of processes.
        start: the step at which the next iteration begins (of the whole run); it ends with that step's epoch.

    Raises:
        UserError: there are no clips, or a batch cannot be split evenly.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        seed: int,
        accumulate: int = 1,
        rank: int = 0,
        world: int = 1,
        start: Callable[[], int] = lambda: 0,
    ) -> None:
        if length < 1:
            raise UserError("There are no clips to train on.")
        if batch_size % (accumulate * world):
            raise UserError(
                f"data.batch_size ({batch_size}) must be a multiple of trainer.accumulate ({accumulate}) times "
                f"the number of processes ({world})."
            )
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.accumulate, self.rank, self.world, self.start = accumulate, rank, world, start

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(self.length, self.batch_size)

    def __len__(self) -> int:
        """Returns the batches per epoch."""
        return self.steps_per_epoch * self.accumulate

    def __iter__(self) -> Iterator[list[SampleIndex]]:
        step = self.start()
        share = self.batch_size // (self.accumulate * self.world)
        stream = batches(self.length, self.batch_size, self.seed, step)
        for _ in range(step, (step // self.steps_per_epoch + 1) * self.steps_per_epoch):
            clips, epochs = (part.tolist() for part in next(stream))
            for part in range(self.accumulate):
                own = slice(first := (part * self.world + self.rank) * share, first + share)
                yield [SampleIndex(clip, epoch) for clip, epoch in zip(clips[own], epochs[own], strict=True)]


def steps_per_epoch(length: int, batch_size: int) -> int:
    """Returns the optimiser steps that count as one epoch, at least 1."""
    return max(1, length // batch_size)


class EvenSampler(Sampler[list[SampleIndex]]):
    """All clips in order, split among the processes. The last places may be empty (clip -1); no clip comes twice."""

    def __init__(self, length: int, batch_size: int, *, rank: int = 0, world: int = 1) -> None:
        self.length, self.batch_size, self.rank, self.world = length, batch_size, rank, world

    def __len__(self) -> int:
        return -(-self.length // (self.batch_size * self.world))

    def __iter__(self) -> Iterator[list[SampleIndex]]:
        for batch in range(len(self)):
            first = (batch * self.world + self.rank) * self.batch_size
            places = range(first, first + self.batch_size)
            if self.world == 1:  # no other process waits for an equal number
                places = range(first, min(first + self.batch_size, self.length))
            yield [SampleIndex(place if place < self.length else -1) for place in places]
