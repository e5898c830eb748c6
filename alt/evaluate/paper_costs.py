"""The cost of the ALT paper's models, as counted here and as printed in the paper."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch

from alt import paper
from alt.cost import CostReport, count_macs
from alt.models import VideoModel, create_model

__all__ = ["PaperCost", "meta_model", "paper_costs"]

_CLASSES = 400
_WIDTH = {"alt-b16": 512, "alt-l14": 768}


class PaperCost(NamedTuple):
    """A printed row beside our count. parameters: of the model without a text encoder."""

    printed: paper.Cost
    report: CostReport
    parameters: int

    @property
    def deviation(self) -> float:
        """Returns the percentage by which our count in the paper's convention exceeds the printed one."""
        return 100 * (self.report.paper_convention_g / self.printed.gflops - 1)


def meta_model(name: str, *, frames: int = 8, r: int = 8) -> VideoModel:
    """Returns the paper's model on the meta device: shapes without memory, 913 entities, 400 classes.

    At r = 0 only the class token is aligned, as in the paper.
    """
    width = _WIDTH.get(name)
    if width is None:
        raise ValueError(f"name: expected one of {', '.join(_WIDTH)}, got '{name}'")
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # L/14 at r = 13 runs out of tokens, as its schedule shows
        return create_model(
            name,
            frames=frames,
            r=r,
            align_tokens="regions+cls" if r else "cls",
            corpus=torch.empty(paper.ENTITIES, width),
            classes=([str(number) for number in range(_CLASSES)], torch.empty(_CLASSES, width)),
        )


def paper_costs(rows: Sequence[paper.Cost] = paper.COSTS) -> list[PaperCost]:
    """Returns every printed row with our count of it. Takes about ten seconds; nothing is computed."""
    found = []
    for row in rows:
        model = meta_model(row.model, frames=row.frames, r=row.r)
        found.append(PaperCost(row, count_macs(model), sum(p.numel() for p in model.parameters())))
    return found
