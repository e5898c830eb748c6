"""The video adapter: frame queries attend to one another and to the frames (Eq. 8)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .blocks import AttentionBlock, Mlp

__all__ = ["AdapterBlock", "VideoAdapter"]


class _Convolution(nn.Module):
    """Two residual branches: LN and depthwise convolution over the frames (zero padding, bias), then LN and FFN."""

    def __init__(self, width: int, kernel: int, zero_output: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.conv = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.ffn_norm = nn.LayerNorm(width)
        self.ffn = Mlp(width, zero_output=zero_output)
        nn.init.trunc_normal_(self.conv.weight, std=0.02)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]
        if zero_output:
            nn.init.zeros_(self.conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.conv(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return x + self.ffn(self.ffn_norm(x))


class AdapterBlock(nn.Module):
    r"""One block of Eq. 8.

    .. math:: \hat X' = \hat X + \mathrm{Conv1D}(\hat X), \qquad \hat Q' = \mathrm{SA}(\hat Q), \qquad
              \hat Q \leftarrow \mathrm{CA}(q = \hat Q', kv = \hat X')

    Each of the three is followed by a pre-norm, residual feed-forward part of hidden width 4 d, because that explains
    the paper's parameter counts: 32 d^2 + 39 d parameters with a kernel of 3.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        self_attention: bool = True,
        convolution: bool = True,
        conv_kernel: int = 3,
        zero_output: bool = True,
    ) -> None:
        super().__init__()
        self.conv = _Convolution(width, conv_kernel, zero_output) if convolution else None
        self.self_attention = AttentionBlock(width, heads, zero_output=zero_output) if self_attention else None
        self.cross_attention = AttentionBlock(width, heads, zero_output=zero_output)

    def forward(self, q: Tensor, keys: Tensor) -> Tensor:
        """Updates queries ``[B, T, d]`` from the frames' embeddings ``[B, T, d]``."""
        if self.conv is not None:
            keys = self.conv(keys)
        if self.self_attention is not None:
            q = self.self_attention(q)
        return self.cross_attention(q, keys)


class VideoAdapter(nn.Module):
    """M blocks of Eq. 8. Every block convolves the *original* frame embeddings; nothing accumulates in them.

    Only the temporal convolution sees the order of the frames. Without it, and without ``temporal_pos``, permuting the
    frames permutes the queries and changes nothing else.

    Args:
        width: d.
        layers: M.
        heads: of the attentions.
        self_attention: False leaves that part out of every block.
        convolution: False leaves that part out of every block.
        conv_kernel: frames that the convolution sees, odd.
        frames: T, for the positions.
        temporal_pos: learned positions ``[T, d]``, added to queries and keys.
        zero_output: the last layer of every part starts at zero, so the adapter starts as the identity.

    Source: arXiv 2311.15619, Eq. 8.
    """

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        *,
        self_attention: bool = True,
        convolution: bool = True,
        conv_kernel: int = 3,
        frames: int = 8,
        temporal_pos: bool = False,
        zero_output: bool = True,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            AdapterBlock(
                width,
                heads,
                self_attention=self_attention,
                convolution=convolution,
                conv_kernel=conv_kernel,
                zero_output=zero_output,
            )
            for _ in range(layers)
        )
        self.temporal_pos = nn.Parameter(torch.empty(frames, width)) if temporal_pos else None
        if self.temporal_pos is not None:
            nn.init.trunc_normal_(self.temporal_pos, std=0.02)

    def no_decay(self) -> list[nn.Parameter]:
        return [] if self.temporal_pos is None else [self.temporal_pos]

    def forward(self, q: Tensor, keys: Tensor) -> Tensor:
        """Returns the queries of the last block, from queries ``[B, T, d]`` and frame embeddings ``[B, T, d]``."""
        if self.temporal_pos is not None:
            q, keys = q + self.temporal_pos, keys + self.temporal_pos
        for block in self.blocks:
            q = block(q, keys)
        return q
