"""The tables of the MAXI paper and its supplement: zero-shot, few-shot and the ablations, with its published numbers.

A row with "K400 labels" is a rival that trained on Kinetics-400's labels. Ablations train MAXI once per row, and the
data sets differ in what is evaluated afterwards: the training's own evaluation is of HMDB-51.

Source: arXiv 2303.08914 and its supplement.
"""

from __future__ import annotations

from collections.abc import Sequence

from .paper_tables import Cell, Metric, PaperTable

__all__ = ["MAXI_TABLES"]

_DATA = ("UCF-101", "HMDB-51", "K600")
_NOT_RUN = (None, None, None)
_XCLIP = ("xclip-b16-ucf-zero-shot", "xclip-b16-hmdb-zero-shot", "xclip-b16-k600-zero-shot")
_OTHERS: tuple[tuple[str, Metric], ...] = (
    ("charades", "mean_average_precision"),
    *(("mit", "top1"), ("mit", "top5")),
    *(("minissv2", "top1"), ("minissv2", "top5")),
    *(("uav", "top1"), ("uav", "top5")),
)


def _table(key: str, title: str, columns: Sequence[str], rows: dict[str, tuple[Cell, ...]], where: str) -> PaperTable:
    return PaperTable(f"maxi-{key}", title, None, None, tuple(columns), rows, paper="MAXI", where=where)


def _zero_shot(names: Sequence[str | None], *printed: tuple[float, float] | float | None) -> tuple[Cell, ...]:
    """Returns the cells of the sets of :data:`_DATA` and of Kinetics-600's top-5.

    names: of the configurations of the sets. printed: numbers, or pairs of a number and its standard deviation.
    """
    pairs = [value if isinstance(value, tuple) else (value, None) for value in printed]
    metrics: tuple[Metric, ...] = ("top1", "top1", "top1", "top5")
    return tuple(
        Cell(printed=value, std=std, configuration=name if value is not None else None, metric=metric)
        for (value, std), name, metric in zip(pairs, (*names, names[-1]), metrics, strict=True)
    )


def _evaluations(row: str) -> tuple[str, str, str]:
    """Returns the configurations that test a training on the sets of :data:`_DATA`. row: "" for MAXI's own."""
    name = f"maxi-{row}-b16" if row else "maxi-b16"
    return f"{name}-ucf-zero-shot", f"{name}-k400", f"{name}-k600-zero-shot"


def _others(name: str | None, *printed: float) -> tuple[Cell, ...]:
    return tuple(
        Cell(printed=value, configuration=None if name is None else f"{name}-{data}-zero-shot", metric=metric)
        for value, (data, metric) in zip(printed, _OTHERS, strict=True)
    )


def _few_shot(name: str | None, *printed: float) -> tuple[Cell, ...]:
    names = [f"{name}-{data}-{shots}shot" for data in ("hmdb", "ucf", "ssv2") for shots in (2, 4, 8, 16)]
    return tuple(
        Cell(printed=value, configuration=None if name is None else row)
        for value, row in zip(printed, names, strict=True)
    )


def _row(row: str | None, *printed: float) -> tuple[Cell, ...]:
    """Returns the cells of an ablation on the sets of :data:`_DATA`. row: of the training, None: it is not run here."""
    names = _NOT_RUN if row is None else _evaluations(row)
    return tuple(Cell(printed=value, configuration=name) for value, name in zip(printed, names, strict=True))


MAXI_TABLES = (
    _table(
        "zero-shot",
        "MAXI zero-shot, B/16, single view: mean over three splits or draws",
        ("UCF-101", "HMDB-51", "K600 top-1", "K600 top-5"),
        {
            "CLIP": _zero_shot(_NOT_RUN, (69.9, 1.3), (38.0, 1.7), (63.5, 0.4), 86.8),
            "ActionCLIP, K400 labels": _zero_shot(_NOT_RUN, 58.3, 40.8, 66.7, 91.6),
            "A5, K400 labels": _zero_shot(_NOT_RUN, 69.3, 44.3, 55.8, 81.4),
            "X-CLIP, K400 labels": _zero_shot(_XCLIP, (72.0, 2.3), (44.6, 5.2), 65.2, 86.1),
            "ViFi-CLIP, K400 labels, 16 frames": _zero_shot(_NOT_RUN, 74.9, 50.9, 67.7, None),
            "ViFi-CLIP, K400 labels, 32 frames": _zero_shot(_NOT_RUN, 76.8, 51.3, 71.2, None),
            "MAXI, names": _zero_shot(_NOT_RUN, 76.6, 50.5, 70.4, 91.5),
            "MAXI, names and phrases": _zero_shot(_NOT_RUN, 77.8, 51.6, 71.6, 92.3),
            "MAXI, names, phrases and captions": _zero_shot(_evaluations(""), 78.2, 52.2, 71.4, None),
            "the same, tested with 32 frames": _zero_shot(_NOT_RUN, 78.2, 52.3, 71.5, None),
        },
        "zero-shot on UCF-101, HMDB-51 and Kinetics-600",
    ),
    _table(
        "other-sets",
        "MAXI zero-shot on other sets, B/16, single view",
        (
            "Charades mAP",
            "MiT top-1",
            "MiT top-5",
            "MiniSSv2 top-1",
            "MiniSSv2 top-5",
            "UAV-Human top-1",
            "UAV-Human top-5",
        ),
        {
            "CLIP": _others(None, 19.80, 20.11, 40.81, 3.96, 14.42, 1.79, 7.05),
            "ViFi-CLIP, K400 labels": _others(None, 25.77, 21.68, 44.19, 5.98, 19.04, 4.67, 15.18),
            "MAXI": _others("maxi-b16", 23.79, 22.91, 46.38, 6.37, 18.73, 2.72, 9.00),
        },
        "zero-shot on Charades, Moments in Time, MiniSSv2 and UAV-Human",
    ),
    _table(
        "few-shot",
        "Few-shot from MAXI, B/16, 32 frames, single view",
        tuple(f"{data} {shots}" for data in ("HMDB", "UCF", "SSv2") for shots in (2, 4, 8, 16)),
        {
            "ViFi-CLIP from CLIP": _few_shot(None, 57.2, 62.7, 64.5, 66.8, 80.7, 85.1, 90.0, 92.7, 6.2, 7.4, 8.5, 12.4),
            "ViFi-CLIP from K400 labels": _few_shot(
                None, 55.8, 60.5, 64.3, 65.4, 84.0, 86.5, 90.3, 92.8, 6.6, 6.8, 8.6, 11.0
            ),
            "MAXI": _few_shot("maxi-b16", 58.0, 60.1, 65.0, 66.5, 86.8, 89.3, 92.4, 93.5, 7.1, 8.4, 9.3, 12.4),
        },
        "few-shot",
    ),
    _table(
        "share",
        "MAXI's share p of clips that is trained on, zero-shot",
        _DATA,
        {
            "100 %, with the true names": _row(None, 82.39, 52.68, 73.39),
            "100 %": _row("share100", 77.88, 51.09, 71.24),
            "90 %": _row("", 78.17, 52.24, 71.43),
            "50 %": _row("share50", 78.18, 50.35, 70.78),
            "30 %": _row("share30", 76.71, 47.73, 70.57),
        },
        "filter of the bags; 59.7, 64.3, 80.9 and 89.5 % of the matches are right at 100, 90, 50 and 30 %",
    ),
    _table(
        "dictionary",
        "MAXI's dictionary, zero-shot, p = 50 %",
        _DATA,
        {
            "Kinetics-400, 400 names": _row("share50", 78.18, 50.35, 70.78),
            "Mini-Kinetics, 200 names": _row("under", 75.10, 48.34, 69.23),
            "800 names, half of captions": _row("over", 75.99, 45.97, 69.14),
            "1200 names": _row(None, 75.72, 45.51, 69.36),
            "1600 names": _row(None, 76.14, 44.84, 69.23),
        },
        "under- and over-specified dictionaries",
    ),
    _table(
        "words",
        "The texts in MAXI's bags, zero-shot, p = 100 %",
        _DATA,
        {
            "names": _row("names", 76.45, 47.43, 69.98),
            "and nouns of captions": _row(None, 76.23, 50.15, 71.13),
            "and verbs of captions": _row(None, 76.94, 50.92, 71.25),
            "and verbs of phrases": _row(None, 76.98, 50.46, 71.24),
            "and verbs of both": _row("share100", 77.88, 51.09, 71.24),
        },
        "words of the bags",
    ),
    _table(
        "loss",
        "What MAXI minimises, zero-shot, p = 100 %",
        _DATA,
        {
            "cross-entropy": _row("ce", 74.48, 48.69, 65.09),
            "NCE": _row("nce", 77.26, 49.85, 70.08),
            "MIL-Max": _row("max", 77.24, 49.85, 70.71),
            "MIL-NCE, positives of one clip": _row("instance", 76.96, 50.48, 70.14),
            "MIL-NCE": _row("share100", 77.88, 51.09, 71.24),
        },
        "objectives",
    ),
    _table(
        "size",
        "Texts per bag and step, zero-shot, p = 100 %",
        ("HMDB-51",),
        {
            str(size): (Cell(printed=value, configuration=f"maxi-{row}-b16-k400"),)
            for size, row, value in (
                (1, "size1", 49.85),
                (4, "size4", 49.84),
                (8, "size8", 50.61),
                (16, "share100", 51.09),
            )
        },
        "bag size",
    ),
    _table(
        "cross-frame",
        "MAXI with attention across frames in the last blocks, zero-shot",
        _DATA,
        {
            "none": _row("", 78.17, 52.24, 71.43),
            "2 blocks": _row("cross2", 77.38, 51.83, 70.41),
            "6 blocks": _row("cross6", 75.91, 51.92, 69.23),
        },
        "supplement, attention across frames",
    ),
)
