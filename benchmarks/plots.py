"""The picture of a kept result: speed-up of every operation over its rivals, and of the tower over its saving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from alt.plots import drawing

Record = dict[str, Any]

OURS, RIVAL, LINE = "#0b6e4f", "#c8553d", "#8d99ae"


def draw(record: Record, path: Path) -> None:
    """Writes the SVG; the same record gives the same file with the same matplotlib."""
    infos = [b["extra_info"] for b in record["benchmarks"]]
    operations = [i for i in infos if i.get("ratio") and "saving_realised" not in i]
    towers = [i for i in infos if "saving_realised" in i]
    bars = sum(len(i["ratio"]) for i in operations)
    panels = [kind for kind in (operations, towers) if kind]
    widths = [1.5 if kind is operations else 1.0 for kind in panels] or [1.0]
    size = (5.2 * sum(widths), max(4.2, 0.26 * bars + 0.36 * len(operations) + 0.8))
    with drawing(path, size, widths) as axes:
        for axis, kind in zip(axes, panels, strict=False):
            _operations(axis, kind) if kind is operations else _towers(axis, kind)


def _operations(axis: Axes, infos: list[Record]) -> None:
    """Draws horizontal bars on a logarithmic axis; the line at 1 means equal speed."""
    y, ticks, labels = 0.0, [], []
    for info in infos:
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        text = f"{info['title']}   {info['shape']}"
        place = axis.get_yaxis_transform()  # x: the axis' left end, y: in bars
        axis.text(0.0, y, text, transform=place, weight="bold", size=8, va="center", bbox=box, zorder=5)
        for rival, ratio in info["ratio"].items():
            y += 0.8
            median = ratio["median"]
            error = [[median - ratio["low"]], [ratio["high"] - median]]
            axis.barh(y, median - 1, left=1, height=0.62, color=OURS if median >= 1 else RIVAL)
            axis.errorbar(median, y, xerr=error, color="black", capsize=2, lw=0.8)
            axis.annotate(f"{median:.2f}", (max(ratio["high"], 1), y), (4, 0), textcoords="offset points", va="center",
                          size=8)  # fmt: skip
            target = info["targets"].get(rival)
            if target:
                axis.plot([target] * 2, [y - 0.36, y + 0.36], color=RIVAL, lw=1.6)
            ticks.append(y)
            labels.append(rival)
        y += 1.1
    axis.set_xscale("log")
    axis.axvline(1, color=LINE, lw=1)
    axis.set_yticks(ticks, labels)
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(y - 0.3, -0.6)
    low, high = axis.get_xlim()
    axis.set_xlim(min(low, 0.8), high * 1.5)
    marks = [v for v in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if axis.get_xlim()[0] <= v <= axis.get_xlim()[1]]
    axis.set_xticks(marks, [f"{v:g}" for v in marks])
    axis.minorticks_off()
    axis.set_xlabel("speed-up over the rival named on the left (red mark: target)")


_STEP = 0.01
"""Between points of one r on the axis of ratios."""


def _towers(axis: Axes, infos: list[Record]) -> None:
    """Draws speed-up against the factor of fewer operations; on the diagonal the whole saving is realised."""
    far, high, middle = 1.0, 1.0, len(infos) - 0.5
    for number, info in enumerate(infos):
        base = info["macs"]["0"]
        for label, speedup in info["speedup"].items():
            ours = "," not in label
            exact = base / info["macs"][label.split(",")[0]]
            x = exact + _STEP * (2 * number + (not ours) - middle)  # side by side, not on top of one another
            error = [[speedup["median"] - speedup["low"]], [speedup["high"] - speedup["median"]]]
            name = info["title"] + ("" if ours else ", plain-torch merging")
            first = label == next(iter(info["speedup"])) or not ours
            axis.errorbar(x, speedup["median"], yerr=error, fmt="os^D"[number % 4], color=OURS if ours else RIVAL,
                          capsize=2, ms=5, fillstyle="none" if number else "full", elinewidth=0.9,
                          label=name if first else None)  # fmt: skip
            if ours and number == 0:
                axis.annotate(f"r = {label}", (exact, 0), (0, 4), xycoords=axis.get_xaxis_transform(),
                              textcoords="offset points", size=8, ha="center")  # fmt: skip
            far, high = max(far, exact), max(high, speedup["high"])
    far = 1 + 1.12 * (far - 1)
    axis.plot([1, far], [1, far], color=LINE, lw=1, label="all of the saving", zorder=0)
    axis.axhline(1, color=LINE, lw=0.6, ls=":")
    axis.set_xlim(0.99 - _STEP * middle, far)
    axis.set_ylim(top=max(far, 1 + 1.1 * (high - 1)) + 0.3 * (high - 1))
    axis.set_xlabel("FLOP ratio to the unpatched tower\n(points of one r stand side by side)")
    axis.set_ylabel("speed-up over the unpatched tower")
    axis.legend(frameon=False, fontsize=8, loc="upper left")
