"""Stochastic depth in the tower of a video model: training leaves out branches of its blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.ops import StochasticDepth

from alt.hosts import BlockParts, find_host

__all__ = ["DropPath", "insert_drop_path"]


class DropPath(StochasticDepth):
    r"""Leaves out a branch for each frame with probability p in training, and divides it by 1 - p elsewhere.

    torchvision's ``StochasticDepth`` by row, and the place where a patched block finds it (``drop_path_adapter``).

    Source: arXiv 1603.09382; X-CLIP's code has it after the attention, the MLP and the exchange of messages.
    """

    def __init__(self, p: float) -> None:
        super().__init__(p, "row")

    def wrap(self, parts: BlockParts) -> BlockParts:
        """Returns the parts of a block with both branches passing this module."""
        attention, feed_forward = parts.after_attention, parts.feed_forward

        def after_attention(y: Tensor) -> Tensor:
            return self(attention(y))

        def drop_feed_forward(normed: Tensor) -> Tensor:
            return self(feed_forward(normed))

        return parts._replace(after_attention=after_attention, feed_forward=drop_feed_forward)


def insert_drop_path(tower: Any, p: float) -> None:
    """Inserts it into every block of a patched tower, and into its messages; p grows linearly from 0 at the first."""
    blocks = find_host(tower).blocks(tower)
    for block, rate in zip(blocks, torch.linspace(0, p, len(blocks), device="cpu").tolist(), strict=True):
        module: Any = block
        module.drop_path_adapter = DropPath(rate).train(module.training)
        if getattr(module, "message_adapter", None) is not None:
            module.message_adapter.drop_path = DropPath(rate).train(module.training)
