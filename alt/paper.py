"""Numbers that the ALT paper prints (arXiv 2311.15619), and those of the systems it is compared with: the only place of
this repository that holds them, with ``paper_tables``.

ALT's are of the ICLR version. The CVPR version prints the same GFLOPs, other accuracies, and numbers its tables
differently. Nothing here was trained on Kinetics: wherever these numbers are shown, they are marked as the paper's.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = [
    "ADAPTER_PARTS",
    "COMPONENTS",
    "CORPUS_SUBSETS",
    "COSTS",
    "ENTITIES",
    "MAXI_DICTIONARIES",
    "SYSTEMS",
    "SYSTEMS_SOURCE",
    "VERSION",
    "Ablation",
    "Cost",
    "cost_of",
]

VERSION = "arXiv 2311.15619, ICLR version"

ENTITIES = 913
"""K, entities of the paper's corpus. The CVPR version prints it: Kinetics-400, HMDB-51 and UCF-101 labels."""


class Cost(NamedTuple):
    """The paper's numbers of one model.

    Attributes:
        model: our name of it. frames: per clip. r: tokens merged per block.
        gflops: of one view.
        top1: Kinetics-400 top-1 in percent of a single view (Table 8); None if the tables sum three views.
        three_views: the same with 1 x 3 views (Table 1); None if it is not printed.
    """

    model: str
    frames: int
    r: int
    gflops: int
    top1: float | None = None
    three_views: float | None = None


COSTS = (
    Cost("alt-b16", 8, 0, 141, 82.6),
    Cost("alt-b16", 8, 4, 129, 82.4),
    Cost("alt-b16", 8, 8, 110, 82.4, 83.6),
    Cost("alt-b16", 8, 13, 86, 81.9),
    Cost("alt-b16", 16, 8, 219, None, 84.6),
    Cost("alt-b16", 32, 8, 436, None, 85.4),
    Cost("alt-l14", 8, 8, 415, None, 86.7),
    Cost("alt-l14", 16, 8, 826, None, 87.6),
    Cost("alt-l14", 32, 8, 1649, None, 87.9),
)
"""Tables 1 and 8. The GFLOPs of three views in Table 1 are three times these."""


def cost_of(model: str, r: int, frames: int = 8) -> Cost | None:
    """Returns the row of a model at an r, or None where the paper prints none."""
    return next((cost for cost in COSTS if (cost.model, cost.r, cost.frames) == (model, r, frames)), None)


class Ablation(NamedTuple):
    """An ablation of ALT-B/16 with 8 frames.

    Attributes:
        table: its number.
        rows: what is varied -> top-1 in percent on Kinetics-400, HMDB-51 (2-shot) and UCF-101 (zero-shot).
    """

    table: str
    rows: dict[str, tuple[float, float, float]]


COMPONENTS = Ablation(
    "Table 5",
    {
        "order-aware baseline": (81.7, 53.0, 72.0),
        "class token aligned": (82.6, 57.7, 75.0),
        "class token aligned, merging": (82.0, 54.1, 73.3),
        "regions aligned, merging": (82.4, 64.0, 76.7),
    },
)
CORPUS_SUBSETS = Ablation(
    "Table C3",
    {
        "none": (81.6, 56.1, 66.3),
        "body parts": (81.9, 60.4, 73.1),
        "objects": (82.2, 62.7, 74.8),
        "scenes": (82.2, 61.9, 74.1),
        "motions": (81.8, 59.7, 72.4),
        "all": (82.3, 64.0, 76.7),
    },
)
ADAPTER_PARTS = Ablation(
    "Table C4",
    {
        "neither": (81.8, 62.4, 75.6),
        "self-attention": (82.2, 63.2, 76.3),
        "convolution": (82.1, 62.7, 76.1),
        "both": (82.3, 64.0, 76.7),
    },
)

SYSTEMS_SOURCE = (
    "B/16. CLIP-One, CLIP-Mean, CLIP-Joint and X-CLIP: arXiv 2208.02816, 8 frames, single view, its ablations; "
    "CLIP, ViFi-CLIP and MAXI: arXiv 2303.08914; ALT: arXiv 2311.15619, Table 5"
)
SYSTEMS: dict[str, tuple[float | None, float | None, float | None]] = {
    "CLIP": (None, None, 69.9),
    "CLIP-One": (69.9, 46.2, 62.5),
    "CLIP-Mean": (80.0, None, None),
    "CLIP-Joint": (82.1, 41.3, 69.3),
    "X-CLIP without prompts": (81.7, 49.6, 63.2),
    "X-CLIP": (82.3, 50.8, 70.0),
    "ViFi-CLIP": (None, 55.8, 76.8),
    "MAXI": (None, 58.0, 78.2),
    "ALT": (82.4, 64.0, 76.7),
}
"""System -> top-1 in percent on Kinetics-400, HMDB-51 (2-shot) and UCF-101 (zero-shot), None where none is printed."""

MAXI_DICTIONARIES = {"400 names": 78.18, "400 names, 400 of captions": 75.99, "pseudo-labels": 74.48}
"""MAXI's zero-shot top-1 on UCF-101 by dictionary (half of the clips kept), and with cross-entropy on all matched names
instead. Source: arXiv 2303.08914."""
