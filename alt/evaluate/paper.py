"""What the ALT paper prints of cost, and what is counted here for the same models.

Numbers of the paper are those of arXiv 2311.15619 and are marked as the paper's wherever they are shown: nothing here
was trained on Kinetics.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch

from alt.cost import CostReport, count_macs
from alt.models import VideoModel, create_model

__all__ = ["CORPUS", "PRINTED", "PaperCost", "Printed", "meta_model", "paper_costs"]

CORPUS = 913
"""K, entities of the paper's corpus (Kinetics-400, HMDB-51 and UCF-101 labels)."""

_CLASSES = 400
_WIDTH = {"alt-b16": 512, "alt-l14": 768}


class Printed(NamedTuple):
    """A row of the paper's tables: single-view GFLOPs of a clip, and Kinetics-400 top-1 where that is of a single
    view with the same r (None elsewhere: the tables of 16 and 32 frames and of L/14 sum three views).

    three_views: top-1 with 1 x 3 views, where the table has that.
    """

    model: str
    frames: int
    r: int
    gflops: int
    top1: float | None = None
    three_views: float | None = None


PRINTED = (
    Printed("alt-b16", 8, 0, 141, 82.6),
    Printed("alt-b16", 8, 4, 129, 82.4),
    Printed("alt-b16", 8, 8, 110, 82.4, 83.6),
    Printed("alt-b16", 8, 13, 86, 81.9),
    Printed("alt-b16", 16, 8, 219, None, 84.6),
    Printed("alt-b16", 32, 8, 436, None, 85.4),
    Printed("alt-l14", 8, 8, 415, None, 86.7),
    Printed("alt-l14", 16, 8, 826, None, 87.6),
    Printed("alt-l14", 32, 8, 1649, None, 87.9),
)


class PaperCost(NamedTuple):
    """A printed row beside what is counted here. parameters: of the model without a text encoder.

    deviation: of our count in the paper's convention from what is printed, percent.
    """

    printed: Printed
    report: CostReport
    parameters: int

    @property
    def deviation(self) -> float:
        return 100 * (self.report.paper_convention_g / self.printed.gflops - 1)


def meta_model(name: str, *, frames: int = 8, r: int = 8) -> VideoModel:
    """The paper's model on the meta device: shapes without memory, 913 entities, 400 classes.

    Without merging the paper aligns nothing but the class token, so r = 0 is that.
    """
    width = _WIDTH.get(name)
    if width is None:
        raise ValueError(f"name: expected one of {', '.join(_WIDTH)}, got '{name}'")
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # L/14 at r = 13 runs out of tokens; the schedule says so
        return create_model(
            name,
            frames=frames,
            r=r,
            align_tokens="regions+cls" if r else "cls",
            corpus=torch.empty(CORPUS, width),
            classes=([str(number) for number in range(_CLASSES)], torch.empty(_CLASSES, width)),
        )


def paper_costs(rows: Sequence[Printed] = PRINTED) -> list[PaperCost]:
    """Every printed row counted here. Takes about ten seconds; nothing is computed."""
    found = []
    for row in rows:
        model = meta_model(row.model, frames=row.frames, r=row.r)
        found.append(PaperCost(row, count_macs(model), sum(p.numel() for p in model.parameters())))
    return found
