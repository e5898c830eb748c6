"""Pictures of a result: its confusion matrix, and the accuracy of each class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alt.plots import drawing

from .metrics import Result

__all__ = ["draw_confusion", "draw_per_class", "list_confusions"]

_NAMED = 60
"""With more classes the names of the axes could not be read."""
_LISTED = 24
_COLOUR, _GREY = "#0b6e4f", "#8d99ae"


def list_confusions(result: Result) -> list[tuple[str, str, int, float]]:
    """Returns (class, class it was taken for, videos, percent of the class's videos), the most videos first."""
    names = list(result.per_class)
    counts = np.asarray(result.confusion, dtype=np.int64)
    wrong = counts - np.diag(np.diag(counts))
    totals = counts.sum(axis=1)
    pairs = sorted(zip(*np.nonzero(wrong), strict=True), key=lambda at: (-wrong[at], -wrong[at] / totals[at[0]], at))
    return [(names[i], names[j], int(wrong[i, j]), 100 * float(wrong[i, j] / totals[i])) for i, j in pairs]


def draw_confusion(result: Result, path: Path) -> Path:
    """Draws the confusion matrix in percent of each class's videos, and beside it the most frequent confusions.

    A class without a video is an empty row. Classes are named on the axes if there are at most 60.

    Raises:
        ValueError: the result has none, because its videos have several labels.
    """
    if not result.confusion:
        raise ValueError("result: expected one label per video for a confusion matrix, got several")
    names = list(result.per_class)
    counts = np.asarray(result.confusion, dtype=np.float64)
    totals = counts.sum(axis=1, keepdims=True)
    share = np.divide(100 * counts, totals, out=np.zeros_like(counts), where=totals > 0)
    pairs = list_confusions(result)[:_LISTED]
    named = len(names) <= _NAMED
    side = max(4.6, min(8.4, 1.6 + 0.14 * len(names))) if named else 6.0
    from matplotlib.colors import PowerNorm

    with drawing(path, (side + 4.6, side), (side, 4.0)) as (matrix, bars):
        scale = PowerNorm(0.5, 0, 100)  # a few percent must be seen beside the diagonal
        shown = matrix.imshow(share, cmap="Greens", norm=scale, interpolation="nearest", aspect="equal")
        matrix.figure.colorbar(shown, ax=matrix, shrink=0.7, label="percent of the class's videos")
        matrix.set_xlabel("recognised as" if named else "number of the class that it was recognised as")
        matrix.set_ylabel("class" if named else "number of the class")
        if named:
            small = 8 if len(names) <= 20 else 5
            matrix.set_xticks(range(len(names)), names, rotation=90, size=small)
            matrix.set_yticks(range(len(names)), names, size=small)
            _plain([*matrix.get_xticklabels(), *matrix.get_yticklabels()])
        matrix.set_title(f"{result.videos} videos, top-1 {result.top1:.1f} %", loc="left")
        _bars(
            bars,
            [f"{_short(true)} → {_short(other)}" for true, other, _, _ in pairs],
            [float(count) for _, _, count, _ in pairs],
            [f"{count} ({percent:.0f} %)" for _, _, count, percent in pairs],
        )
        bars.set_xlabel("videos (percent of the class)")
        bars.set_title("most frequent confusions" if pairs else "no confusion", loc="left")
    return path


def draw_per_class(result: Result, path: Path) -> Path:
    """Draws the accuracy of every class, sorted, and the lowest classes by name.

    Where videos have several labels it is the average precision. Classes without a video are left out.
    """
    known = sorted((value, name) for name, value in result.per_class.items() if value is not None)
    measure = "accuracy" if result.confusion else "average precision"
    lowest = known[:_LISTED]
    mean = sum(value for value, _ in known) / len(known)
    with drawing(path, (9.6, 1.4 + 0.18 * len(lowest)), (5.0, 4.6)) as (curve, bars):
        place = np.arange(1, len(known) + 1)
        curve.bar(place, [value for value, _ in known], width=1.0, color=_GREY, linewidth=0)
        curve.bar(place[: len(lowest)], [value for value, _ in lowest], width=1.0, color=_COLOUR, linewidth=0)
        curve.axhline(mean, color="black", lw=0.8, ls="--")
        curve.annotate(f"mean {mean:.1f} %", (1, mean), (2, 3), textcoords="offset points", size=8)
        curve.set_ylim(0, 100)
        curve.set_xlim(0.5, len(known) + 0.5)
        curve.set_xlabel("classes, the lowest first")
        curve.set_ylabel(f"{measure}, percent")
        _bars(bars, [_short(name) for _, name in lowest], [v for v, _ in lowest], [f"{v:.0f} %" for v, _ in lowest])
        bars.set_xlim(0, 112)
        bars.set_xticks(range(0, 101, 20))
        bars.set_xlabel(f"{measure}, percent")
        bars.set_title("all classes" if len(lowest) == len(known) else f"the lowest {len(lowest)}", loc="left")
    return path


def _bars(axis: Any, names: Sequence[str], values: Sequence[float], notes: Sequence[str]) -> None:
    """Draws named horizontal bars from the top, with a note at the end of each."""
    axis.barh(range(len(names)), values, color=_COLOUR)
    for row, (value, note) in enumerate(zip(values, notes, strict=True)):
        axis.annotate(note, (value, row), (3, 0), textcoords="offset points", va="center", size=7)
    axis.set_yticks(range(len(names)), names, size=7)
    _plain(axis.get_yticklabels())
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(max(len(names), 1) - 0.4, -0.6)
    axis.set_xlim(0, 1.2 * max([*values, 1]))


def _short(name: str, most: int = 34) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _plain(labels: Sequence[Any]) -> None:
    for label in labels:
        label.set_parse_math(False)  # a dollar sign in a name is a dollar sign
