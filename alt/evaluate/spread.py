"""A measure over seeds, splits or draws: its mean and its standard deviation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from alt.tables import plus_minus

__all__ = ["Spread", "mean_std", "spread"]


class Spread(NamedTuple):
    """A measure over splits, draws or seeds.

    Attributes:
        mean: of the values. std: their sample standard deviation (n - 1), None for one value.
        values: all of them. seeds: of the draws, or the numbers of the splits.
    """

    mean: float
    std: float | None
    values: tuple[float, ...]
    seeds: tuple[int, ...]

    def __str__(self) -> str:
        return plus_minus(self.mean, self.std)


def spread(values: Sequence[float], seeds: Sequence[int] | None = None) -> Spread:
    """Returns the spread of values, which are numbered from 0 without ``seeds``."""
    mean, std = mean_std(values)
    return Spread(mean, std, tuple(values), tuple(range(len(values)) if seeds is None else seeds))


def mean_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Returns the mean and the sample standard deviation (n - 1), which is None for a single value.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("values: expected at least one number, got none")
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, None
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
