"""The outcome of a statement about methods: whether it holds on average over seeds, and the numbers it rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from alt.evaluate.spread import mean_std
from alt.tables import plus_minus

__all__ = ["Found", "Ordering", "Results", "Series", "make_row"]

Results = Mapping[str, Sequence[Mapping[str, float]]]
"""method -> its measures, one run per seed; a run names its seed as "seed", and runs without one are numbered."""


class Ordering(NamedTuple):
    """A statement and its outcome.

    key: "a" to "j", or a word. gated: the statement must hold. holds: it does; None if it was not run.
    found: the numbers, mean and spread over seeds. seeds: their number.
    """

    key: str
    statement: str
    gated: bool
    holds: bool | None
    found: str
    seeds: int


class Series(tuple[float, ...]):
    """One number per seed."""

    @property
    def mean(self) -> float:
        return mean_std(self)[0]

    def minus(self, other: Sequence[float]) -> Series:
        """Subtracts seed by seed."""
        return Series(a - b for a, b in zip(self, other, strict=True))

    def __str__(self) -> str:
        return plus_minus(*mean_std(self))


class Found:
    """The measures of all methods, by method and name."""

    def __init__(self, results: Results) -> None:
        self.results = results

    def get(self, method: str, name: str) -> Series | None:
        runs = self.results.get(method)
        if not runs or any(name not in run for run in runs):
            return None
        return Series(run[name] for run in runs)

    def mean_of(self, method: str, names: Sequence[str]) -> Series | None:
        """Returns the mean over several measures, seed by seed."""
        parts = [self.get(method, name) for name in names]
        known = [part for part in parts if part is not None]
        return Series(sum(row) / len(row) for row in zip(*known, strict=True)) if len(known) == len(names) else None

    def difference(self, first: str, second: str, name: str) -> Series | None:
        """Returns the differences over the seeds that both methods have."""
        return self.mean_difference(first, second, [name])

    def mean_difference(self, first: str, second: str, names: Sequence[str]) -> Series | None:
        """Returns the differences of the mean over several measures, over the seeds that both methods have."""
        one, other = self.mean_of(first, names), self.mean_of(second, names)
        if one is None or other is None:
            return None
        there = dict(zip(self._seeds(second), other, strict=True))
        common = [value - there[seed] for seed, value in zip(self._seeds(first), one, strict=True) if seed in there]
        return Series(common) if common else None

    def _seeds(self, method: str) -> list[int]:
        return [int(run.get("seed", i)) for i, run in enumerate(self.results[method])]


def make_row(
    key: str, statement: str, gated: bool, parts: Sequence[Series | None], holds: bool, found: str
) -> Ordering:
    """Returns the outcome of a statement; "not run" if one of the ``parts`` it rests on is missing."""
    if any(part is None for part in parts):
        return Ordering(key, statement, gated, None, "not run", 0)
    return Ordering(key, statement, gated, holds, found, min(len(part) for part in parts if part is not None))
