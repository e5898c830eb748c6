"""An image tower as somebody else might write it. It has nothing in common with open_clip's but the mathematics.

Two special tokens, which are not pooled; separate projections of q, k and v; a learned gain after attention; the mean
of the patches as the result. ``turns`` rotates q and k by the place of a patch; ``letters`` adds one token per layer
that is made from the first special token and sits in on attention.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Mixer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ask, self.name, self.tell = (nn.Linear(width, width) for _ in range(3))
        self.back = nn.Linear(width, width)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor, extra_logits: Tensor | None = None, angle: Tensor | None = None) -> Tensor:
        q, k, v = (self.split(part(x)) for part in (self.ask, self.name, self.tell))
        if angle is not None:
            q, k = turn(q, angle), turn(k, angle)
        logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        if extra_logits is not None:
            logits = logits + extra_logits[:, None, None]
        return self.back((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))


def turn(x: Tensor, angle: Tensor) -> Tensor:
    """Rotates the first two channels of every head of ``x`` ``[B, H, N, D]`` by ``angle`` ``[B, N]``."""
    sin, cos = angle.sin()[:, None].to(x), angle.cos()[:, None].to(x)
    a, b = x[..., 0], x[..., 1]
    return torch.cat([torch.stack([a * cos - b * sin, a * sin + b * cos], -1), x[..., 2:]], -1)


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, letters: bool) -> None:
        super().__init__()
        self.pre, self.mid = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix = Mixer(width, heads)
        self.gain = nn.Parameter(torch.full((width,), 0.5))
        self.wide = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
        self.letter = nn.Linear(width, width) if letters else None

    def forward(self, x: Tensor, angle: Tensor | None = None) -> Tensor:
        count = x.shape[1]
        joined = x if self.letter is None else torch.cat([x, self.letter(x[:, :1])], 1)
        x = x + self.gain * self.mix(self.pre(joined), angle=angle)[:, :count]
        return x + self.wide(self.mid(x))


class ToyTower(nn.Module):
    def __init__(
        self,
        side: tuple[int, int] = (16, 24),
        cell: int = 4,
        width: int = 32,
        depth: int = 2,
        heads: int = 2,
        joint: int = 16,
        turns: bool = False,
        letters: bool = False,
    ) -> None:
        super().__init__()
        self.side, self.cell, self.turns, self.recompute = side, cell, turns, False
        self.stem = nn.Conv2d(3, width, cell, cell)
        self.specials = nn.Parameter(torch.randn(2, width))
        self.places = nn.Parameter(torch.randn((side[0] // cell) * (side[1] // cell), width))
        self.layers = nn.ModuleList(Layer(width, heads, letters) for _ in range(depth))
        self.last = nn.LayerNorm(width)
        self.to_joint = nn.Linear(width, joint, bias=False)

    def begin(self, images: Tensor) -> Tensor:
        patches = self.stem(images).flatten(2).transpose(1, 2) + self.places
        return torch.cat([self.specials.expand(len(images), -1, -1), patches], 1)

    def angles(self, batch: int) -> Tensor | None:
        """``[B, N]``: special tokens are not turned, patches by their number."""
        if not self.turns:
            return None
        own = torch.arange(len(self.places), dtype=torch.float32) * 0.1 + 0.1
        return F.pad(own, (2, 0)).expand(batch, -1)

    def forward(self, images: Tensor) -> Tensor:
        x, angle = self.begin(images), self.angles(len(images))
        for layer in self.layers:
            x = layer(x, angle)
        return self.to_joint(self.last(x)[:, 2:].mean(1))
