"""Accuracy against cost as r grows: rows that combine accuracies with measured costs.

The caller passes accuracies (of the comparison on EntityWorld, or of a checkpoint on the user's data). The cost of a
point is counted and measured here, on the model itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from alt.cost import count_macs

from .spread import mean_std

__all__ = ["Point", "Tradeoff", "TradeoffRow", "find_anomalies", "group_by_curve", "is_monotone", "rows_of"]


class Point(NamedTuple):
    """One point on the curve.

    method: str, its name in the legend, e.g. "ALT" or "CLIP-Mean".
    r: int >= 0, tokens removed per block at test time (the mean over blocks for a sloped schedule).
    inflection: float in [-1, 1], 0 for a constant schedule, -1 for one that falls from 2 r to 0.
    trained_r: int or None, r in training: equal to ``r`` for merging in training, 0 for merging added after training
        ("off-the-shelf"), None for a model that was not trained.
    """

    method: str
    r: int
    inflection: float = 0.0
    trained_r: int | None = 0


class TradeoffRow(NamedTuple):
    """A :class:`Point` with its measurements.

    gmacs: float, 1e9 multiply-accumulates per clip, native count (the literature's "GFLOPs").
    accuracy_mean, accuracy_std: top-1 in percent, mean and sample standard deviation over seeds; the latter is None
        for one seed. seeds: int, their number.
    images_per_s: float or None, frames per second of the whole model on the device that ran it.
    peak_memory_bytes: int or None, peak memory of one forward pass beyond the memory held before it.
    """

    method: str
    r: int
    inflection: float
    trained_r: int | None
    gmacs: float
    accuracy_mean: float
    accuracy_std: float | None
    seeds: int
    images_per_s: float | None = None
    peak_memory_bytes: int | None = None

    @property
    def point(self) -> Point:
        return Point(self.method, self.r, self.inflection, self.trained_r)

    @property
    def regime(self) -> str:
        """Returns a phrase on the use of merging in training."""
        if self.trained_r is None:
            return "not trained"
        if self.r == 0 and self.trained_r == 0:
            return "no merging"
        return "in training" if self.trained_r == self.r else f"off-the-shelf (trained at r={self.trained_r})"


class Tradeoff(NamedTuple):
    """All rows of a sweep, and its setting (a flat dict of plain values for the record)."""

    rows: tuple[TradeoffRow, ...]
    setting: dict[str, Any]


def rows_of(
    accuracies: Mapping[Point, Sequence[float]],
    model_at: Callable[[Point], nn.Module],
    *,
    clips: int = 8,
    device: torch.device | str = "cpu",
    measure: bool = True,
    seconds: float = 20.0,
) -> list[TradeoffRow]:
    """Returns one row per point in the order of ``accuracies``, with the measured cost of its model.

    Args:
        accuracies: point -> top-1 in percent, one number per seed.
        model_at: point -> the whole video model set to that r. Called once per method, r and inflection, because the
            cost does not depend on training.
        clips: batch of the time and memory measurements.
        device: of both measurements.
        measure: if False, only accuracies and multiply-accumulates are filled in.
        seconds: budget of the timing over all points.
    """
    models: dict[tuple[str, int, float], nn.Module] = {}
    for point in accuracies:
        key = point[:3]
        if key not in models:
            models[key] = model_at(point)
    speed: Mapping[Any, Any] = {}
    memory: Mapping[Any, Any] = {}
    if measure:
        from .speed_and_memory import peak_memory, throughput

        speed = throughput(models, clips=clips, device=device, seconds=seconds)
        memory = peak_memory(models, clips=clips, device=device)
    gmacs = {key: count_macs(model).native_g for key, model in models.items()}
    rows = []
    for point, values in accuracies.items():
        mean, std = mean_std(values)
        key = point[:3]
        rows.append(TradeoffRow(*point, gmacs[key], mean, std, len(values), speed.get(key), memory.get(key)))
    return rows


def is_monotone(rows: Sequence[TradeoffRow]) -> bool:
    """Returns True if multiply-accumulates fall strictly as r grows, within every method and schedule."""
    return all(
        a.gmacs > b.gmacs for group in group_by_curve(rows).values() for a, b in itertools.pairwise(group) if b.r > a.r
    )


def find_anomalies(rows: Sequence[TradeoffRow], *, tolerance: float = 2.0) -> list[str]:
    """Returns sentences about mean accuracies that exceed those at a smaller r by more than ``tolerance`` points.

    Merging only discards information, so a curve that rises with r beyond noise points to a fault.
    """
    found = []
    for group in group_by_curve(rows).values():
        for i, small in enumerate(group):
            for large in group[i + 1 :]:
                gain = large.accuracy_mean - small.accuracy_mean
                if large.r > small.r and gain > tolerance:
                    found.append(
                        f"{large.method}, {large.regime}: {gain:.1f} points more at r = {large.r} than at r = {small.r}"
                    )
    return found


def group_by_curve(rows: Sequence[TradeoffRow]) -> dict[tuple[str, float, str], list[TradeoffRow]]:
    """Returns (method, inflection, regime) -> rows by r, each starting with the method's r = 0 without merging."""
    found: dict[tuple[str, float, str], list[TradeoffRow]] = {}
    for row in rows:
        if row.r > 0:
            found.setdefault((row.method, row.inflection, row.regime), []).append(row)
    starts = {row.method: row for row in rows if row.r == 0 and not row.trained_r}
    for (method, _, _), curve in found.items():
        curve += [starts[method]] if method in starts else []
        curve.sort(key=lambda row: row.r)
    for method, row in starts.items():
        if not any(name[0] == method for name in found):
            found[method, row.inflection, row.regime] = [row]
    return found


complaints = find_anomalies  # the documented name of before, for one release
