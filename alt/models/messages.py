"""Cross-frame communication: one message token per frame, exchanged between the frames of a clip in every block."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from alt.hosts import find_host
from alt.patch.apply import is_patched

__all__ = ["FrameMessages", "insert_messages"]


class FrameMessages(nn.Module):
    r"""The messages of one block, made from the class tokens of a clip's T frames.

    .. math:: m_t = W z_{t,0} + b, \qquad \hat M = M + \mathrm{MHA}(\mathrm{LN}(M))

    :math:`\hat m_t` joins the attention of frame t as one more token of size 1. It is dropped after the attention, so
    it takes no part in matching, merging or the MLP. It has 5 w^2 + 7 w parameters.

    Messages know no order: permuting the frames of a clip permutes the messages.

    Args:
        width: w of the tower. heads: of the attention between messages, those of the block. frames: T.

    Source: arXiv 2208.02816 (X-CLIP), Eq. 7.
    """

    def __init__(self, width: int, heads: int, frames: int) -> None:
        super().__init__()
        self.frames = frames
        self.project = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        for weight in (self.project.weight, self.attention.in_proj_weight, self.attention.out_proj.weight):
            nn.init.trunc_normal_(weight, std=0.02)
        nn.init.zeros_(self.project.bias)
        self.drop_path: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Returns the messages ``[B T, 1, w]`` of frames ``[B T, n, w]``.

        Raises:
            ValueError: the frames are not whole clips.
        """
        images = x.shape[0]
        if images % self.frames:
            raise ValueError(f"a tower with messages takes whole clips of {self.frames} frames, got {images} images")
        messages = self.project(x[:, 0]).unflatten(0, (-1, self.frames))
        normed = self.norm(messages)
        messages = messages + self.drop_path(self.attention(normed, normed, normed, need_weights=False)[0])
        return messages.flatten(0, 1).unsqueeze(1)


def insert_messages(tower: Any, frames: int) -> None:
    """Inserts new messages into every block of a patched tower, as ``message_adapter``, on its device, in its dtype.

    Raises:
        TypeError: the tower is not patched, so its blocks would not call them, its heads are not known, or it has no
            class token.
    """
    if not is_patched(tower):
        raise TypeError("messages sit in patched blocks: call alt.patch_clip(model, r) first (r=0 merges nothing)")
    host = find_host(tower)
    if host.num_protected(tower) == 0:
        raise TypeError(
            f"messages: they are made from class tokens, and {type(tower).__name__} has none; expected messages=False"
        )
    for i, block in enumerate(host.blocks(tower)):
        parts = host.block_parts(block, tower, i)
        try:
            heads = parts.attention.key_projection().num_heads
        except TypeError:
            raise TypeError(
                f"messages need as many heads as the attention of their block, which that of block {i} of "
                f"{type(tower).__name__} does not tell"
            ) from None
        weight = next(block.parameters())
        with torch.device(weight.device):
            messages: Any = FrameMessages(host.width(tower), heads, frames).to(weight.dtype).train(block.training)
        block.message_adapter = messages
