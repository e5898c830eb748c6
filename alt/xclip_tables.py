"""The tables of the X-CLIP paper and its supplement, and its published numbers.

Few-shot rows of X-CLIP stand in the ALT paper's tables (:mod:`alt.paper_tables`). Rows without a configuration need an
image tower pretrained on ImageNet, X-Florence's, or a trained text tower beside a frozen image tower.

Source: arXiv 2208.02816 and its supplement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .paper_tables import Cell, Metric, PaperTable

__all__ = ["XCLIP_TABLES"]

_COLUMNS = ("UCF-101 0-shot", "HMDB-51 2-shot", "K400")
_PROTOCOLS = ("ucf-zero-shot-8f", "hmdb-2shot-8f", "k400-8f")


def _table(
    key: str,
    title: str,
    columns: Sequence[str],
    rows: dict[str, tuple[Cell, ...]],
    where: str,
    gflops: Mapping[str, float] | None = None,
) -> PaperTable:
    return PaperTable(
        f"xclip-{key}", title, None, None, tuple(columns), rows, paper="X-CLIP", where=where, gflops=gflops or {}
    )


def _views(name: str | None, top1: float, top5: float) -> tuple[Cell, ...]:
    return Cell(printed=top1, configuration=name), Cell(printed=top5, configuration=name, metric="top5")


def _compared(name: str | None, *printed: float | None) -> tuple[Cell, ...]:
    """Returns the cells of a system with 8 frames: zero-shot, few-shot, fully supervised."""
    return tuple(
        Cell(printed=value, configuration=None if name is None or value is None else f"{name}-{protocol}")
        for protocol, value in zip(_PROTOCOLS, printed, strict=True)
    )


def _one(name: str, top1: float) -> tuple[Cell, ...]:
    return (Cell(printed=top1, configuration=name),)


def _zero_shot(name: str | None, *printed: tuple[float, float]) -> tuple[Cell, ...]:
    columns: tuple[tuple[str, Metric], ...] = (("hmdb", "top1"), ("ucf", "top1"), ("k600", "top1"), ("k600", "top5"))
    return tuple(
        Cell(printed=value, std=std, configuration=None if name is None else f"{name}-{end}-zero-shot", metric=metric)
        for (value, std), (end, metric) in zip(printed, columns, strict=True)
    )


def _sampled(frames: int, how: str, several: float, single: float) -> tuple[Cell, ...]:
    """Returns the cells of a way of sampling: 3 x 4 views and one. Sparse in both is X-CLIP's own run."""
    name = f"xclip-b16-k400-{frames}f" + ("" if how == "sparse, sparse" else f"-{how.replace(', ', '-')}")
    return Cell(printed=several, configuration=f"{name}-4x3"), Cell(printed=single, configuration=name)


XCLIP_TABLES = (
    _table(
        "k400",
        "X-CLIP on Kinetics-400, frames x 3 x 4 views; GFLOPs of one view",
        ("top-1", "top-5"),
        {
            "B/32, 8": _views("xclip-b32-k400-8f-4x3", 80.4, 95.0),
            "B/32, 16": _views("xclip-b32-k400-16f-4x3", 81.1, 95.5),
            "B/16, 8": _views("xclip-b16-k400-8f-4x3", 83.8, 96.7),
            "B/16, 8, from IN-21k": _views(None, 81.1, 94.7),
            "B/16, 16": _views("xclip-b16-k400-16f-4x3", 84.7, 96.8),
            "L/14, 8": _views("xclip-l14-k400-8f-4x3", 87.1, 97.6),
            "L/14 at 336, 16": _views("xclip-l14-336-k400-16f-4x3", 87.7, 97.4),
        },
        "fully supervised, Kinetics-400",
        {"B/32, 8": 39, "B/32, 16": 75, "B/16, 8": 145, "B/16, 16": 287, "L/14, 8": 658, "L/14 at 336, 16": 3086},
    ),
    _table(
        "k600",
        "X-CLIP on Kinetics-600, frames x 3 x 4 views; GFLOPs of one view",
        ("top-1", "top-5"),
        {
            "B/16, 8": _views("xclip-b16-k600-8f-4x3", 85.3, 97.1),
            "B/16, 16": _views("xclip-b16-k600-16f-4x3", 85.8, 97.3),
            "L/14, 8": _views("xclip-l14-k600-8f-4x3", 88.3, 97.7),
        },
        "fully supervised, Kinetics-600",
        {"B/16, 8": 145, "B/16, 16": 287, "L/14, 8": 658},
    ),
    _table(
        "zero-shot",
        "X-CLIP zero-shot, 32 frames, single view: mean over three splits or draws",
        ("HMDB-51", "UCF-101", "K600 top-1", "K600 top-5"),
        {
            "X-CLIP-B/16": _zero_shot("xclip-b16", (44.6, 5.2), (72.0, 2.3), (65.2, 0.4), (86.1, 0.8)),
            "X-Florence": _zero_shot(None, (48.4, 4.9), (73.2, 4.2), (68.8, 0.9), (88.4, 0.6)),
        },
        "zero-shot",
    ),
    _table(
        "components",
        "Parts of X-CLIP, B/16, K400, 8 frames",
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
    _table(
        "encoders",
        "Video encoders compared, B/16, 8 frames, single view, first splits",
        _COLUMNS,
        {
            "CLIP-One": _compared("clip-one-b16", 62.5, 46.2, 69.9),
            "CLIP-Joint": _compared("clip-joint-b16", 69.3, 41.3, 82.1),
            "X-CLIP": _compared("xclip-b16", 70.0, 50.8, 82.3),
        },
        "encoders",
        {"CLIP-One": 14, "CLIP-Joint": 184, "X-CLIP": 145},
    ),
    _table(
        "text",
        "What texts bring to X-CLIP, B/16, 8 frames, single view",
        _COLUMNS,
        {
            "linear head": _compared("xclip-no-text-b16", None, 32.0, 81.6),
            "class texts": _compared("xclip-b16", 70.0, 50.8, 82.3),
        },
        "text",
    ),
    _table(
        "prompts",
        "Prompts of X-CLIP's class texts, B/16, 8 frames, single view",
        _COLUMNS,
        {
            "bare names": _compared("xclip-bare-names-b16", 63.2, 49.6, 81.7),
            "16 templates": _compared("xclip-templates-b16", 63.9, 49.6, 81.7),
            "16 learned vectors": _compared("xclip-vectors-b16", 63.2, 49.9, 82.0),
            "video-specific": _compared("xclip-b16", 70.0, 50.8, 82.3),
        },
        "prompts",
    ),
    _table(
        "tuned",
        "Towers of X-CLIP that are trained, B/16, 8 frames, single view",
        _COLUMNS,
        {
            "both": _compared("xclip-both-towers-b16", 72.9, 54.6, 82.4),
            "image": _compared("xclip-b16", 70.0, 50.8, 82.3),
            "text": _compared(None, 66.8, 53.4, 79.3),
            "neither": _compared("xclip-frozen-b16", 64.2, 47.3, 79.1),
        },
        "fine-tuned branches",
    ),
    _table(
        "sampling",
        "Sampling of X-CLIP's frames in training and test, B/16, K400",
        ("3 x 4 views", "one view"),
        {
            f"{frames} frames, {how}": _sampled(frames, how, several, single)
            for frames, how, several, single in (
                (8, "dense, dense", 81.9, 77.8),
                (8, "dense, sparse", 82.4, 81.1),
                (8, "sparse, dense", 82.2, 77.3),
                (8, "sparse, sparse", 83.4, 82.3),
                (32, "dense, dense", 82.8, 78.8),
                (32, "dense, sparse", 83.2, 83.0),
                (32, "sparse, dense", 83.0, 77.9),
                (32, "sparse, sparse", 84.4, 84.2),
            )
        },
        "sampling",
    ),
    _table(
        "imagenet",
        "X-CLIP with an image tower of ImageNet instead of CLIP's, K400",
        ("top-1", "top-5"),
        {"IN-1k": _views(None, 75.9, 90.2), "IN-21k": _views(None, 79.8, 94.0)},
        "pretraining",
    ),
    _table(
        "imagenet-text",
        "Image towers of ImageNet with and without class texts",
        _COLUMNS[:2],
        {
            f"{source}, {head}": (Cell(printed=zero), Cell(printed=few))
            for source, head, zero, few in (
                ("IN-21k", "linear head", None, 39.4),
                ("IN-21k", "class texts", 62.8, 50.7),
                ("IN-1k", "linear head", None, 10.8),
                ("IN-1k", "class texts", 58.0, 46.0),
            )
        },
        "text for other encoders",
    ),
    _table(
        "from-scratch",
        "From scratch with a linear head, B/32, K400, 8 frames",
        ("top-1", "top-5"),
        {
            "mean of the frames": _views("scratch-mean-b32-k400-8f", 45.3, 68.5),
            "cross-frame attention and integration": _views("scratch-xclip-b32-k400-8f", 47.8, 71.8),
        },
        "supplement",
    ),
)
