"""A stand-in for the Attention of later open_clip releases, which cannot be installed beside the pinned one.

Same class name, module, attributes and call signature; the maths is written out plainly. A tower with it is
built by putting it into the blocks of an installed tower.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import LayerNorm
from torch import Tensor, nn
from towers import randomised, tower


class Attention(nn.Module):
    def __init__(
        self,
        dim: int,
        num_heads: int,
        qk_norm: bool = False,
        scaled_cosine: bool = False,
        scale_heads: bool = False,
        inner_norm: bool = False,
        kdim: int | None = None,
    ) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.scale, self.logit_scale_max, self.use_sdpa = self.head_dim**-0.5, math.log(100.0), True
        own = kdim is None or kdim == dim
        self.in_proj_weight = nn.Parameter(torch.randn(3 * dim, dim) * self.scale) if own else None
        for name in ("q", "k", "v"):
            width = dim if name == "q" else kdim
            weight = None if own else nn.Parameter(torch.randn(dim, width) * self.scale)
            self.register_parameter(f"{name}_proj_weight", weight)
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.ln_q = LayerNorm(self.head_dim) if qk_norm else nn.Identity()
        self.ln_k = LayerNorm(self.head_dim) if qk_norm else nn.Identity()
        self.logit_scale = nn.Parameter(torch.full((num_heads, 1, 1), math.log(10))) if scaled_cosine else None
        self.head_scale = nn.Parameter(torch.ones(num_heads, 1, 1)) if scale_heads else None
        self.ln_inner = LayerNorm(dim) if inner_norm else nn.Identity()
        self.attn_drop, self.out_drop = nn.Dropout(0.0), nn.Dropout(0.0)
        self.out_proj = nn.Linear(dim, dim)

    def forward(
        self, x: Tensor, k_x: Tensor | None = None, v_x: Tensor | None = None, attn_mask: Tensor | None = None
    ) -> Tensor:
        sources = (x, x if k_x is None else k_x, x if v_x is None else v_x)
        if self.in_proj_weight is None:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        else:
            weights = self.in_proj_weight.chunk(3)
        q, k, v = (
            F.linear(source, weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for source, weight, bias in zip(sources, weights, self.in_proj_bias.chunk(3), strict=True)
        )
        if self.logit_scale is not None:
            q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
            logits = q @ k.transpose(-1, -2) * self.logit_scale.clamp(max=self.logit_scale_max).exp()
        else:
            logits = self.ln_q(q) @ self.ln_k(k).transpose(-1, -2) * self.scale
        y = self.attn_drop((logits if attn_mask is None else logits + attn_mask).softmax(-1)) @ v
        if self.head_scale is not None:
            y = y * self.head_scale
        return self.out_drop(self.out_proj(self.ln_inner(y.transpose(1, 2).flatten(2))))


Attention.__module__ = "open_clip.transformer"  # what the patch knows the class by


def later_tower(*, custom: bool, pooler: bool = False, **attention: Any) -> Any:
    """A tower of the installed release with the later Attention in every block and pooler."""
    options = {"attentional_pool": True, "attn_pooler_queries": 5} if pooler else {}
    visual = tower(block_type="custom" if custom else None, **options)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        for block in visual.transformer.resblocks:
            block.attn = randomised(Attention(32, 2, **attention).double())
            if not custom:
                block.attention = _LaterCall(block)
        if pooler:
            visual.attn_pool.attn = randomised(_PoolerAttention(16, 2, kdim=32).double())
    return visual


class _LaterCall:
    """How the later ResidualAttentionBlock calls its attention, for the unpatched reference."""

    def __init__(self, block: Any) -> None:
        self.block = block

    def __call__(self, q_x: Tensor, k_x: Any = None, v_x: Any = None, attn_mask: Tensor | None = None) -> Tensor:
        k_x, v_x = (q_x if source is None else source for source in (k_x, v_x))
        return self.block.attn(q_x, k_x=k_x, v_x=v_x, attn_mask=attn_mask)


class _PoolerAttention(Attention):
    """Takes the older pooler's call too, so that the unpatched tower of the installed release can run."""

    def forward(
        self, x: Tensor, k_x: Any = None, v_x: Any = None, attn_mask: Any = None, need_weights: Any = None
    ) -> Any:
        y = super().forward(x, k_x, v_x, attn_mask)
        return (y,) if need_weights is False else y


_PoolerAttention.__module__ = "open_clip.transformer"
