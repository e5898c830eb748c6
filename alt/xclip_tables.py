"""The tables of the X-CLIP paper that this package has configurations for, and its published numbers.

Few-shot, zero-shot and Kinetics-600 rows of X-CLIP stand in the ALT paper's tables (:mod:`alt.paper_tables`).

Source: arXiv 2208.02816 and its supplement.
"""

from __future__ import annotations

from .paper_tables import Cell, PaperTable

__all__ = ["XCLIP_TABLES"]

_COLUMNS = ("UCF-101 0-shot", "HMDB-51 2-shot", "K400")


def _views(name: str, top1: float, top5: float) -> tuple[Cell, ...]:
    return Cell(xclip=top1, configuration=name), Cell(xclip=top5, configuration=name, top5=True)


def _compared(name: str, *printed: float) -> tuple[Cell, ...]:
    """Returns the cells of a system with 8 frames: zero-shot, few-shot, fully supervised."""
    protocols = ("ucf-zero-shot-8f", "hmdb-2shot-8f", "k400-8f")
    return tuple(
        Cell(xclip=value, configuration=f"{name}-{protocol}")
        for protocol, value in zip(protocols, printed, strict=True)
    )


def _one(name: str, top1: float) -> tuple[Cell, ...]:
    return (Cell(xclip=top1, configuration=name),)


XCLIP_TABLES = (
    PaperTable(
        "xclip-k400",
        "X-CLIP on Kinetics-400, frames x 3 x 4 views",
        None,
        None,
        ("top-1", "top-5"),
        {
            "B/32, 8": _views("xclip-b32-k400-8f-4x3", 80.4, 95.0),
            "B/32, 16": _views("xclip-b32-k400-16f-4x3", 81.1, 95.5),
            "B/16, 8": _views("xclip-b16-k400-8f-4x3", 83.8, 96.7),
            "B/16, 16": _views("xclip-b16-k400-16f-4x3", 84.7, 96.8),
            "L/14, 8": _views("xclip-l14-k400-8f-4x3", 87.1, 97.6),
        },
        "fully supervised",
    ),
    PaperTable(
        "xclip-components",
        "Parts of X-CLIP, B/16, K400, 8 frames",
        None,
        None,
        ("top-1",),
        {
            "CLIP-Mean": _one("clip-mean-b16-k400-8f", 80.0),
            "+ cross-frame attention": _one("xclip-messages-b16-k400-8f", 81.2),
            "+ integration over the frames": _one("xclip-messages-mit-b16-k400-8f", 81.7),
            "+ video-specific prompts": _one("xclip-b16-k400-8f", 82.3),
            "+ 3 x 4 views": _one("xclip-b16-k400-8f-4x3", 83.8),
        },
        "components",
    ),
    PaperTable(
        "xclip-encoders",
        "Video encoders compared, B/16, 8 frames, single view, first splits",
        None,
        None,
        _COLUMNS,
        {
            "CLIP-One": _compared("clip-one-b16", 62.5, 46.2, 69.9),
            "CLIP-Joint": _compared("clip-joint-b16", 69.3, 41.3, 82.1),
            "X-CLIP": _compared("xclip-b16", 70.0, 50.8, 82.3),
        },
        "encoders",
    ),
    PaperTable(
        "xclip-text",
        "What texts bring to X-CLIP, B/16, 8 frames, single view",
        None,
        None,
        _COLUMNS,
        {
            "linear head": (
                Cell(),
                Cell(xclip=32.0, configuration="xclip-no-text-b16-hmdb-2shot-8f"),
                Cell(xclip=81.6, configuration="xclip-no-text-b16-k400-8f"),
            ),
            "class texts": _compared("xclip-b16", 70.0, 50.8, 82.3),
        },
        "text",
    ),
    PaperTable(
        "xclip-from-scratch",
        "From scratch with a linear head, B/32, K400, 8 frames",
        None,
        None,
        ("top-1", "top-5"),
        {
            "mean of the frames": _views("scratch-mean-b32-k400-8f", 45.3, 68.5),
            "cross-frame attention and integration": _views("scratch-xclip-b32-k400-8f", 47.8, 71.8),
        },
        "supplement",
    ),
)
