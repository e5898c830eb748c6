"""Adapters inside a frozen tower (AIM): a bottleneck after attention, beside the MLP, and after temporal attention.

Each block of the tower gets a submodule ``adapter``, which a patched block calls at three points
(:mod:`alt.patch.step`). CLIP's own modules, parameters and state_dict keys do not change.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from alt.hosts import BlockParts, find_host
from alt.patch.apply import is_patched
from alt.patch.attention import self_attention

from .blocks import Mlp

__all__ = ["KINDS", "BlockAdapter", "bottleneck", "insert_adapters", "inserted_kind", "remove_adapters"]

KINDS = ("s", "sm", "stm", "stm-shared")
"""Spatial; spatial and MLP; spatial, temporal and MLP: one, two or three bottlenecks per block; and the last with one
matching for all frames of a clip."""

_RATIO = 0.25  # hidden width of a bottleneck, as a share of the tower's width
_MLP_SCALE = 0.5  # of the bottleneck beside the MLP, a constant of AIM


def bottleneck(width: int) -> Mlp:
    """Returns an MLP through a quarter of the width whose output starts at zero.

    It has 2 w (w / 4) + w / 4 + w parameters: 295,872 at w = 768.
    """
    return Mlp(width, max(int(width * _RATIO), 1), zero_output=True)


class BlockAdapter(nn.Module):
    r"""The adapters of one block (Yang et al. 2023, AIM, arXiv 2302.03024; attention is the block's own, frozen).

    .. math:: x \leftarrow x + A_T(\mathrm{MSA}_{time}(\mathrm{LN}_1 x)), \quad
              y = \mathrm{MSA}(\mathrm{LN}_1 x), \quad x \leftarrow \mathrm{Merge}(x + y + A_S(y)), \quad
              x \leftarrow x + \mathrm{MLP}(\mathrm{LN}_2 x) + \tfrac12 A_M(\mathrm{LN}_2 x)

    Every A starts at zero, so a tower with new adapters computes the same as without.

    Temporal attention joins the same row of all T frames of a clip. Once tokens have merged, row k is a different
    region in each frame. So all rows take part only while nothing has merged: in every block at r = 0, otherwise up to
    the first block that merges. After that only the protected tokens take part. "stm-shared" merges the same tokens in
    all frames of a clip, so row k stays one place and all rows take part in every block.

    Attributes:
        matched_frames: images in a row that a block matches together, None: each by itself.

    Args:
        width: w of the tower. kind: of ``KINDS``. frames: T; a tower with temporal adapters takes whole clips.
    """

    def __init__(self, width: int, kind: str, frames: int) -> None:
        super().__init__()
        self.kind = kind
        self.frames = frames
        self.matched_frames = frames if kind == "stm-shared" else None
        self.spatial = bottleneck(width)
        self.beside = bottleneck(width) if "m" in kind else None
        self.temporal = bottleneck(width) if "t" in kind else None

    def before_attention(self, parts: BlockParts, x: Tensor, *, merged: bool, num_protected: int) -> Tensor:
        """Adds temporal attention to ``x`` ``[B T, n, w]``. ``merged``: earlier blocks have merged tokens."""
        merged = merged and self.matched_frames is None  # else a row is the same place in every frame
        if self.temporal is None or (merged and num_protected == 0):
            return x
        images, rows, width = x.shape
        if images % self.frames:
            raise ValueError(
                f"a tower with temporal adapters takes whole clips of {self.frames} frames, got {images} images"
            )
        joined = x[:, :num_protected] if merged else x
        steps = joined.unflatten(0, (-1, self.frames)).transpose(1, 2).reshape(-1, self.frames, width)
        y = self_attention(parts.attention, parts.norm_1(steps))
        y = self.temporal(y).view(images // self.frames, -1, self.frames, width).transpose(1, 2).flatten(0, 1)
        return torch.cat([joined + y, x[:, num_protected:]], 1) if merged and rows > num_protected else joined + y

    def after_attention(self, y: Tensor) -> Tensor:
        """Returns what the spatial attention adds to the stream, given its output ``y``."""
        return y + self.spatial(y)

    def beside_mlp(self, y: Tensor, normed: Tensor) -> Tensor:
        """Returns what the MLP adds to the stream, given its output ``y`` and its input ``normed``."""
        return y if self.beside is None else y + _MLP_SCALE * self.beside(normed)


def insert_adapters(tower: Any, kind: str, frames: int) -> None:
    """Inserts new adapters into every block of a patched tower, on its device and in its dtype.

    Raises:
        ValueError: the kind is unknown, or the tower already has adapters.
        TypeError: the tower is not patched, so its blocks would not call the adapters.
    """
    if kind not in KINDS:
        raise ValueError(f"adapters must be one of {', '.join(KINDS)}, got {kind!r}")
    if not is_patched(tower):
        raise TypeError("adapters sit in patched blocks: call alt.patch_clip(model, r) first (r=0 merges nothing)")
    if inserted_kind(tower) is not None:
        raise ValueError(f"the tower already has adapters ({inserted_kind(tower)}); call remove_adapters first")
    host = find_host(tower)
    for i, block in enumerate(host.blocks(tower)):
        weight: Any = host.block_parts(block, tower, i).norm_1.weight
        with torch.device(weight.device):
            block.adapter = BlockAdapter(weight.shape[0], kind, frames).to(weight.dtype).train(block.training)


def remove_adapters(tower: Any) -> None:
    """Removes the adapters and restores the tower. Without adapters it does nothing."""
    for block in find_host(tower).blocks(tower):
        if "adapter" in block._modules:
            del block.adapter


def inserted_kind(tower: Any) -> str | None:
    """Returns the kind of the tower's adapters, or None without adapters."""
    blocks = find_host(tower).blocks(tower)
    adapter = blocks[0]._modules.get("adapter") if len(blocks) else None
    return adapter.kind if isinstance(adapter, BlockAdapter) else None
