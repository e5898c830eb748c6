"""Writes the trade-off as JSON, CSV, Markdown and a plot, beside the paper's numbers, which are marked as such."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alt.files import replacing
from alt.plots import drawing
from alt.tables import plus_minus, to_csv, to_markdown

from .paper_costs import PaperCost
from .tradeoff import Tradeoff, TradeoffRow, group_by_curve

__all__ = ["draw", "from_record", "markdown", "paper_markdown", "record", "schedule_name", "write"]

Record = dict[str, Any]

COLOURS = ("#0b6e4f", "#c8553d", "#3d5a80", "#8d99ae", "#b08900", "#6a4c93")
MARKERS = "osD^vP"


def record(tradeoff: Tradeoff, paper: Sequence[PaperCost]) -> Record:
    """Returns plain values, unrounded. The names of the paper's numbers say so."""
    return {
        "rows": [row._asdict() for row in tradeoff.rows],
        "setting": tradeoff.setting,
        "paper": [
            {
                "model": cost.printed.model,
                "frames": cost.printed.frames,
                "r": cost.printed.r,
                "gmacs_native": cost.report.native_g,
                "gmacs_paper_convention": cost.report.paper_convention_g,
                "deviation_percent": cost.deviation,
                "parameters": cost.parameters,
                "paper_prints_gflops": cost.printed.gflops,
                "paper_prints_top1_single_view": cost.printed.top1,
                "paper_prints_top1_three_views": cost.printed.three_views,
            }
            for cost in paper
        ],
    }


def from_record(found: Mapping[str, Any]) -> Tradeoff:
    return Tradeoff(tuple(TradeoffRow(**row) for row in found["rows"]), dict(found["setting"]))


def schedule_name(inflection: float) -> str:
    if inflection == 0:
        return "constant"
    return "decreasing" if inflection == -1 else f"inflection {inflection:g}"


def markdown(rows: Sequence[TradeoffRow]) -> str:
    """Returns the table of measurements."""
    head = ["method", "schedule", "merging", "r", "GMACs", "top-1 %", "seeds", "frames/s", "peak MiB"]
    body = []
    for row in rows:
        memory = None if row.peak_memory_bytes is None else row.peak_memory_bytes / 2**20
        speed = None if row.images_per_s is None else round(row.images_per_s)
        body.append(
            [
                *(row.method, schedule_name(row.inflection), row.regime, row.r, f"{row.gmacs:.4g}"),
                *(plus_minus(row.accuracy_mean, row.accuracy_std), row.seeds, speed, memory),
            ]
        )
    return to_markdown(head, body, left=3)


def paper_markdown(found: Sequence[Mapping[str, Any]]) -> str:
    """Returns the table of our counts beside the paper's, from the records of :func:`record`."""
    head = [
        *("model", "frames", "r", "native GMACs", "in the paper's convention", "the paper prints (GFLOPs)"),
        *("deviation", "the paper's top-1, 1 view", "the paper's top-1, 3 views"),
    ]
    body = [
        [
            *(row["model"], row["frames"], row["r"], row["gmacs_native"], row["gmacs_paper_convention"]),
            *(row["paper_prints_gflops"], f"{row['deviation_percent']:+.2f} %"),
            *(row["paper_prints_top1_single_view"], row["paper_prints_top1_three_views"]),
        ]
        for row in found
    ]
    return to_markdown(head, body)


def write(tradeoff: Tradeoff, paper: Sequence[PaperCost], folder: Path) -> list[Path]:
    """Writes tradeoff.json, .csv, .md, .svg and .png into ``folder`` and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    found = record(tradeoff, paper)
    text = "# Accuracy against cost\n\n" + markdown(tradeoff.rows)
    text += "\n" + "\n".join(f"- {name}: {value}" for name, value in tradeoff.setting.items()) + "\n"
    if found["paper"]:
        text += (
            "\n# The paper's models\n\nGMACs are counted here; GFLOPs and accuracies are the paper's (Kinetics-400)."
        )
        text += "\n\n" + paper_markdown(found["paper"])
    contents = {
        "tradeoff.json": json.dumps(found, indent=1) + "\n",
        "tradeoff.csv": to_csv(TradeoffRow._fields, tradeoff.rows),
        "tradeoff.md": text,
    }
    for name, content in contents.items():
        with replacing(folder / name, "the results") as partial:
            partial.write_text(content, encoding="utf-8")
    pictures = [folder / "tradeoff.svg", folder / "tradeoff.png"]
    for path in pictures:
        draw(found, path)
    return [*(folder / name for name in contents), *pictures]


def draw(found: Mapping[str, Any], path: Path, title: str = "") -> None:
    """Draws accuracy over GMACs: the measured curves, and beside them the paper's ViT-B/16 points if given."""
    rows = from_record(found).rows
    printed = [row for row in found["paper"] if row["paper_prints_top1_single_view"] is not None]
    widths = [1.4, 1] if printed else [1]
    with drawing(path, (5.6 + 4.0 * (len(widths) - 1), 4.2), widths) as axes:
        _measured(axes[0], rows)
        axes[0].set_title(title or _title(found["setting"]), fontsize=9, loc="left")
        if printed:
            _printed(axes[1], printed)


def _title(setting: Mapping[str, Any]) -> str:
    return f"Measured here: {setting['data']}" if "data" in setting else "Measured here"


def _measured(axis: Any, rows: Sequence[TradeoffRow]) -> None:
    named = set()
    small = max(row.gmacs for row in rows) < 1
    scale, unit = (1e3, "1e6") if small else (1.0, "1e9")
    rows = [row._replace(gmacs=scale * row.gmacs) for row in rows]
    groups = group_by_curve(rows)
    for number, (name, curve) in enumerate(groups.items()):
        offset = 0.004 * (number - (len(groups) - 1) / 2)  # curves share their costs, so draw them side by side
        span = max(row.gmacs for row in rows) - min(row.gmacs for row in rows) or 1.0
        x = [row.gmacs + offset * span for row in curve]
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        spread = [row.accuracy_std or 0.0 for row in curve]
        axis.errorbar(
            x, [row.accuracy_mean for row in curve], yerr=spread, color=colour, marker=marker, ms=4.5, lw=1.2,
            capsize=2, elinewidth=0.8, label=_legend(name),
        )  # fmt: skip
        if name[1] == 0:
            for row in curve:
                if row.gmacs not in named:
                    named.add(row.gmacs)
                    axis.axvline(row.gmacs, color="#e3e6ea", lw=0.8, zorder=0)
                    axis.annotate(f"r={row.r}", (row.gmacs, 1.0), xycoords=axis.get_xaxis_transform(), size=8,
                                  xytext=(0, -2), textcoords="offset points", ha="center", va="top",
                                  bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})  # fmt: skip
    low = min(row.accuracy_mean - (row.accuracy_std or 0) for row in rows)
    high = max(row.accuracy_mean + (row.accuracy_std or 0) for row in rows)
    room = max(high - low, 4.0)  # a smaller window would make noise look like a trend
    low, high = min(low, (low + high - room) / 2), max(high, (low + high + room) / 2)
    axis.set_ylim(low - 0.08 * room, high + 0.14 * room)
    axis.set_xlabel(f"{unit} multiply-accumulates per clip (1e9 are one of the literature's GFLOPs)")
    axis.set_ylabel("top-1 %, mean ± standard deviation over seeds")
    axis.legend(frameon=False, fontsize=8, loc="lower right")


def _legend(name: tuple[str, float, str]) -> str:
    method, inflection, regime = name
    return f"{method}, {schedule_name(inflection)} r, {regime.split(' (')[0]}"


def _printed(axis: Any, printed: Sequence[Mapping[str, Any]]) -> None:
    top = [row["paper_prints_top1_single_view"] for row in printed]
    native = [row["gmacs_native"] for row in printed]
    gflops = [row["paper_prints_gflops"] for row in printed]
    axis.plot(gflops, top, "o--", color=COLOURS[3], ms=5, lw=1, fillstyle="none", label="the paper's GFLOPs")
    axis.plot(native, top, "o-", color=COLOURS[0], ms=5, lw=1, label="GMACs as done here")
    for row, x, y in zip(printed, gflops, top, strict=True):
        axis.annotate(f"r={row['r']}", (x, y), (5, -12), textcoords="offset points", size=8)
    axis.set_ylim(min(top) - 0.35, max(top) + 0.25)
    axis.set_xlim(min(native) - 8, max(gflops) + 14)
    axis.set_xlabel("GFLOPs of 8 frames")
    axis.set_ylabel("top-1 % on Kinetics-400, as the paper prints it")
    axis.set_title("The paper's ALT-B/16 (accuracy not measured here)", fontsize=9, loc="left")
    axis.legend(frameon=False, fontsize=8, loc="lower right")
