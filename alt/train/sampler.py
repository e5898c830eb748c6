"""Which clips make up which step: a pure function of (seed, step), so that a run can begin at any step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch.utils.data import Sampler

from alt.data.seeds import make_generator
from alt.errors import UserError


class Draw(NamedTuple):
    """One clip of one step. ``turn`` counts how often the clip has come before and so decides its augmentation.

    ``number`` -1 is a place left empty, so that every process has as many clips."""

    number: int
    turn: int = 0


def order(length: int, seed: int, turn: int) -> torch.Tensor:
    """The permutation of a turn through the clips."""
    return torch.randperm(length, generator=make_generator("order", seed=seed, epoch=turn))


class StepSampler(Sampler[list[Draw]]):
    """Batches of one process.

    The clips are an endless stream of permutations, one after the other, each of them dealt out completely; step s has
    the clips [s B, (s + 1) B) of it. They are shared out to ``parts`` accumulated batches and in each to ``world``
    processes, so what a step consists of does not depend on either.

    Args:
        length: clips. batch_size: B, all processes and parts together. seed: of the permutations.
        parts, rank, world: accumulated batches of a step, number of this process, number of processes.
        start: the step at which the next iteration begins (of the whole run); it ends with that step's epoch.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        seed: int,
        parts: int = 1,
        rank: int = 0,
        world: int = 1,
        start: Callable[[], int] = lambda: 0,
    ) -> None:
        if length < 1:
            raise UserError("There are no clips to train on.")
        if batch_size % (parts * world):
            raise UserError(
                f"data.batch_size ({batch_size}) must be a multiple of trainer.accumulate ({parts}) times "
                f"the number of processes ({world})."
            )
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.parts, self.rank, self.world, self.start = parts, rank, world, start

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(self.length, self.batch_size)

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return self.steps_per_epoch * self.parts

    def __iter__(self) -> Iterator[list[Draw]]:
        step, cached, permutation = self.start(), -1, torch.empty(0)
        share = self.batch_size // (self.parts * self.world)
        for current in range(step, (step // self.steps_per_epoch + 1) * self.steps_per_epoch):
            for part in range(self.parts):
                first = current * self.batch_size + (part * self.world + self.rank) * share
                batch = []
                for position in range(first, first + share):
                    turn, place = divmod(position, self.length)
                    if turn != cached:
                        cached, permutation = turn, order(self.length, self.seed, turn)
                    batch.append(Draw(int(permutation[place]), turn))
                yield batch


def steps_per_epoch(length: int, batch_size: int) -> int:
    return max(1, length // batch_size)


class EvenSampler(Sampler[list[Draw]]):
    """All clips in order, dealt out to the processes; the last places may be empty (index -1), none comes twice."""

    def __init__(self, length: int, batch_size: int, *, rank: int = 0, world: int = 1) -> None:
        self.length, self.batch_size, self.rank, self.world = length, batch_size, rank, world

    def __len__(self) -> int:
        return -(-self.length // (self.batch_size * self.world))

    def __iter__(self) -> Iterator[list[Draw]]:
        for batch in range(len(self)):
            first = (batch * self.world + self.rank) * self.batch_size
            places = range(first, first + self.batch_size)
            if self.world == 1:  # no other process waits for an equal number
                places = range(first, min(first + self.batch_size, self.length))
            yield [Draw(place if place < self.length else -1) for place in places]
