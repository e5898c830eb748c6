"""Accuracy over cost on Kinetics-400: the published models, and beside them the evaluations that are at hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from alt.paper_tables import TABLES
from alt.plots import drawing

from .paper_tables import Measured
from .spread import mean_std

__all__ = ["Point", "draw_pareto", "find_front", "list_points"]

_RIVAL, _ALT, _OURS = "#8d99ae", "#0b6e4f", "#c8553d"


class Point(NamedTuple):
    """cost: 1e9 multiply-accumulates of all views of a video. top1: percent. kind: "published", "ALT" (the paper's
    numbers, the later version's where it prints one) or "ours"."""

    name: str
    cost: float
    top1: float
    kind: str


def list_points(measured: Mapping[str, Measured]) -> list[Point]:
    """Returns the models of the table of Kinetics-400 with their published costs, and ours with the cost counted here.

    A model without a published cost is left out, and so is a result without its cost.
    """
    table = next(table for table in TABLES if table.key == "k400")
    points = []
    for name, (cell, *_) in table.rows.items():
        printed = cell.cvpr if cell.cvpr is not None else cell.iclr
        if name in table.gflops and printed is not None:
            kind = "published" if cell.configuration is None else "ALT"
            points.append(Point(name, table.gflops[name], printed, kind))
        result = measured.get(cell.configuration or "")
        cost = None if result is None else result.setting.get("gmacs_per_video")
        if result is not None and isinstance(cost, int | float):
            points.append(Point(name, float(cost), mean_std(result.top1)[0], "ours"))
    return points


def find_front(points: Iterable[Point]) -> list[Point]:
    """Returns the points that no other one beats in both cost and accuracy, the cheapest first."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.cost, -point.top1)):
        if not front or point.top1 > front[-1].top1:
            front.append(point)
    return front


def draw_pareto(points: Iterable[Point], path: Path) -> Path:
    """Draws the points with their names, and the front of the published ones as steps."""
    points = list(points)
    with drawing(path, (7.2, 4.6)) as (axis,):
        front = find_front(point for point in points if point.kind != "ours")
        axis.step([p.cost for p in front], [p.top1 for p in front], where="post", color=_RIVAL, lw=0.8, ls="--",
                  label="front of the published", zorder=1)  # fmt: skip
        heights = _spread_names(points)
        for kind, colour, marker, label in (
            ("published", _RIVAL, "o", "others, as the ALT paper prints them"),
            ("ALT", _ALT, "s", "ALT, as its paper prints it"),
            ("ours", _OURS, "D", "evaluated here, cost counted here"),
        ):
            chosen = [point for point in points if point.kind == kind]
            if chosen:
                axis.scatter([p.cost for p in chosen], [p.top1 for p in chosen], 26, colour, marker=marker, label=label)
            for point in chosen:
                left = point.cost > 2e4 or any(_is_right_of(other, point) for other in points)
                place = (point.cost / 1.05 if left else point.cost * 1.05, heights[point])
                axis.text(*place, point.name, ha="right" if left else "left", va="bottom", size=7, color=colour)
        axis.set_xscale("log")
        axis.set_xlabel("1e9 multiply-accumulates of all views of a video (the literature's GFLOPs)")
        axis.set_ylabel("top-1 on Kinetics-400, percent")
        axis.legend(frameon=False, fontsize=8, loc="lower left")
    return path


def _is_right_of(other: Point, point: Point) -> bool:
    """Returns whether the name of ``point``, to its right, would cover another point."""
    return 1.2 < other.cost / point.cost < 1.7 and abs(other.top1 - point.top1) < 0.5


def _spread_names(points: Iterable[Point], gap: float = 0.27) -> dict[Point, float]:
    """Returns where the name of each point begins, in percent: names beside one another are ``gap`` apart."""
    heights: dict[Point, float] = {}
    for point in sorted(points, key=lambda point: point.top1):
        near = [height for other, height in heights.items() if 0.8 < other.cost / point.cost < 1.25]
        heights[point] = max([point.top1 + 0.03, *(height + gap for height in near if height + gap > point.top1)])
    return heights
