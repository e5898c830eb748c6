"""Attention across frames without parameters: keys that are the mean over a frame and its neighbours."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from alt.hosts import find_host

__all__ = ["NeighbourKeys", "attend_across_frames"]


class NeighbourKeys(nn.Module):
    r"""Keys of a frame's attention that are the mean of its own and those of the frames before and after it.

    .. math:: y_t = \mathrm{softmax}\Big(\tfrac{1}{|I_t|} \sum_{i \in I_t} q_t k_{t+i}^T / \sqrt{D}\Big) v_t

    with I_t = {-1, 0, 1}, and two of them at the ends of a clip. The mean of the logits is the logit of the mean key,
    so the attention itself costs what it did. A key is averaged with the same row of other frames, and so that a row
    stays one place once tokens merge, all frames of a clip merge the same ones. It has no parameters.

    Attributes:
        mix: called with keys; None in a block that only merges like the others.
        matched_frames: T, images in a row that a block matches together.

    Source: arXiv 2303.08914 (MAXI), supplement, Eq. 1, with the root of D that its code has.
    """

    def __init__(self, frames: int, mixes: bool) -> None:
        super().__init__()
        self.matched_frames = frames
        self.mixes = mixes

    @property
    def mix(self) -> Any:
        return self if self.mixes else None

    def forward(self, k: Tensor) -> Tensor:
        """Returns keys ``[B T, H, N, D]`` for keys ``[B T, H, N, D]``, with a mean in float32 or better.

        Raises:
            ValueError: the frames are not whole clips.
        """
        frames = self.matched_frames
        if len(k) % frames:
            raise ValueError(f"attention across frames takes whole clips of {frames} frames, got {len(k)} images")
        wide = k.to(torch.promote_types(k.dtype, torch.float32)).unflatten(0, (-1, frames))
        nothing = torch.zeros_like(wide[:, :1])
        before, after = torch.cat([nothing, wide[:, :-1]], 1), torch.cat([wide[:, 1:], nothing], 1)
        step = torch.arange(frames, device=k.device)
        count = 1 + (step > 0).to(wide.dtype) + (step < frames - 1).to(wide.dtype)
        return ((before + wide + after) / count.view(-1, 1, 1, 1)).flatten(0, 1).to(k.dtype)


def attend_across_frames(tower: Any, frames: int, last: int) -> None:
    """Lets the last blocks of a patched tower attend with the mean keys, and all blocks merge clip by clip.

    Raises:
        ValueError: the tower has fewer blocks.
    """
    blocks = find_host(tower).blocks(tower)
    if last > len(blocks):
        raise ValueError(f"cross_frame: expected at most the {len(blocks)} blocks of the tower, got {last}")
    for i, block in enumerate(blocks):
        module: Any = block
        module.key_adapter = NeighbourKeys(frames, i >= len(blocks) - last)
