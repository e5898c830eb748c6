"""The cost of the ALT paper's models, as counted here and as printed in the paper."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch

from alt import paper
from alt.cost import CostReport, count_macs
from alt.models import AltModel, VideoModel, create_model

__all__ = ["CLASSES", "PaperCost", "meta_model", "paper_costs"]

CLASSES = 400
"""Of Kinetics-400."""


class PaperCost(NamedTuple):
    """A printed row beside our count. parameters: of the model without a text encoder."""

    printed: paper.Cost
    report: CostReport
    parameters: int

    @property
    def deviation(self) -> float:
        """Returns the percentage by which our count in the paper's convention exceeds the printed one."""
        return 100 * (self.report.paper_convention_g / self.printed.gflops - 1)


def meta_model(
    name: str,
    *,
    backbone: str | None = None,
    frames: int | None = None,
    r: int | float | Sequence[int] | None = None,
    classes: int = CLASSES,
) -> VideoModel:
    """Returns a model by name on the meta device: shapes without memory, 913 entities if it aligns.

    ALT at r = 0 aligns the class token alone, as in the paper.

    Args:
        name, backbone, frames, r: as in :func:`alt.create_model`. classes: C.

    Raises:
        ValueError: there is no such model, or ``frames`` or ``r`` does not fit it.
    """
    options = {"align_tokens": "cls"} if name.startswith("alt") and r == 0 else {}
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # L/14 at r = 13 runs out of tokens, as its schedule shows
        model = create_model(name, backbone=backbone, frames=frames, r=r, **options)
        model.set_classes([str(number) for number in range(classes)], torch.empty(classes, model.width))
        if isinstance(model, AltModel):
            model.set_corpus(torch.empty(paper.ENTITIES, model.width))
    return model


def paper_costs(rows: Sequence[paper.Cost] = paper.COSTS) -> list[PaperCost]:
    """Returns every printed row with our count of it. Takes about ten seconds; nothing is computed."""
    found = []
    for row in rows:
        model = meta_model(row.model, frames=row.frames, r=row.r)
        found.append(PaperCost(row, count_macs(model), sum(p.numel() for p in model.parameters())))
    return found
