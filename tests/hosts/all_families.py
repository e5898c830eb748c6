"""Every family that the built-in hosts know, and its outputs from the equations."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .backbone_families import BACKBONES
from .copied_families import COPIES
from .families import FAMILIES as OTHERS
from .families import Family
from .padded_families import PADDED
from .plain_merging import run_blocks
from .rotary_families import ROTARY
from .torch_families import IMAGE_MODELS, SEQUENCES

__all__ = ["FAMILIES", "IMAGES", "REMOVED", "by_hand"]

IMAGES: dict[str, Family] = OTHERS | COPIES | ROTARY | BACKBONES | PADDED | IMAGE_MODELS
FAMILIES: dict[str, Family] = IMAGES | SEQUENCES
REMOVED = (5, 3)
"""Tokens that the two blocks remove."""


def by_hand(family: Family, model: Any, batch: Tensor, metric: str = "keys") -> tuple[Any, list[list[float]]]:
    """The outputs of ``family.run`` and the sizes of the last tokens."""
    grids, sizes = grids_by_hand(family, model, batch, metric)
    return family.finish(model, grids[-1]), sizes


def grids_by_hand(
    family: Family, model: Any, batch: Tensor, metric: str = "keys"
) -> tuple[list[Tensor], list[list[float]]]:
    """The tokens after each block, back on the grid, and the sizes of the last tokens."""
    tower = family.tower(model)
    x, places = family.embed(tower, batch), family.places(tower, batch)
    return run_blocks(family.blocks(tower), x, REMOVED, family.protected, places, family.counts, metric)
