"""The multi-frame integration transformer: the order-aware baseline (X-CLIP without its messages and prompts)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .blocks import AttentionBlock, Mlp, quick_gelu
from .config import FrameIntegrationConfig, num_heads
from .text_tower import TextTower
from .video_model import Tokens, VideoModel

__all__ = ["FrameIntegration", "FrameIntegrationModel"]


class _Block(AttentionBlock):
    """Self-attention over the frames and an FFN with QuickGELU. Saved files name its layers without "ffn."."""

    def add_feed_forward(self, width: int, zero_output: bool) -> None:
        layers = Mlp(width, zero_output=zero_output)
        self.up, self.down = layers.up, layers.down

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.down(quick_gelu(self.up(x)))


class FrameIntegration(nn.Module):
    r"""Maps frame embeddings H ``[B, T, d]`` to a video embedding ``[B, d]``.

    .. math:: v = \mathrm{mean}_t\,(\mathrm{MIT}(H + e) + H)

    e are learned positions of the frames, ``[T, d]``. Only they carry the order: with the same e for all frames, v is
    invariant to permutations. A block has 12 d^2 + 13 d parameters.

    Args:
        width: d. layers: blocks. heads: of their attention, d // 64 in the paper. frames: T.

    Source: arXiv 2208.02816 (X-CLIP), Eq. 6, and the outer residual of its code.
    """

    def __init__(self, width: int, layers: int, heads: int, frames: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(nn.init.trunc_normal_(torch.empty(frames, width), std=0.02))
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(layers))

    def no_decay(self) -> list[nn.Parameter]:
        return [self.positions]

    def forward(self, frames: Tensor) -> Tensor:
        x = frames + self.positions
        for block in self.blocks:
            x = block(x)
        return (x + frames).mean(1)


class FrameIntegrationModel(VideoModel):
    """Order-aware baseline without text entities: an integration transformer, then the mean of the frames."""

    config_class = FrameIntegrationConfig
    rows = "class"

    def __init__(
        self,
        config: FrameIntegrationConfig,
        visual: nn.Module,
        logit_scale: Tensor | float = 100.0,
        text: TextTower | None = None,
    ) -> None:
        super().__init__(config, visual, logit_scale, text)
        heads = num_heads(config.heads, self.width)
        self.integration = FrameIntegration(self.width, config.layers, heads, config.frames)

    def embed(self, tokens: Tokens, *, seed: Tensor | None, noise: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self.integration(tokens.frame), None
