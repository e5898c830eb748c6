"""Token merging inside open_clip's image tower as commonly written: the plain-torch operations of `rivals`.

It uses the tower's own modules and parameters, one call each. Only attention and the merge after it differ from the
unpatched tower: query-key product, log size, softmax and product with the values run one after the other. It supports
the needs of the benchmarks: class-token pooling, blocks with `nn.MultiheadAttention`, no patch dropout.
"""

from __future__ import annotations

from typing import Any

import rivals
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def forward(tower: nn.Module, images: Tensor, r: int, *, masked: bool = False) -> Tensor:
    """Returns embeddings ``[B, d]`` of ``images`` ``[B, 3, H, W]``, with r tokens (at most half) merged per block.

    ``masked``: attention by PyTorch's fused kernel with the log sizes as its mask, instead of step by step.
    """
    t: Any = tower
    return t.ln_post(tokens(tower, images, r, masked=masked)[:, 0]) @ t.proj


def tokens(tower: nn.Module, images: Tensor, r: int, *, masked: bool = False) -> Tensor:
    """Returns the tokens after the last block, ``[B, n, w]``, with gradient."""
    t: Any = tower
    patches = t.conv1(images).flatten(2).transpose(1, 2)
    cls = t.class_embedding.expand(len(images), 1, -1)
    x = t.ln_pre(torch.cat([cls, patches], dim=1) + t.positional_embedding)
    size: Tensor | None = None
    for block in t.transformer.resblocks:
        mixed, keys = attend(block.attn, block.ln_1(x), size, masked)
        x = x + block.ls_1(mixed)
        removed = min(r, (x.shape[1] - 1) // 2)
        if removed:
            size = x.new_ones(*x.shape[:2], 1) if size is None else size
            with torch.no_grad():  # the choice of pairs has no gradient
                pairs = rivals.match(keys.mean(dim=1), removed)
            x, size = rivals.merge(x, size, pairs)
        x = x + block.ls_2(block.mlp(block.ln_2(x)))
    return x


def attend(attn: nn.MultiheadAttention, x: Tensor, size: Tensor | None, masked: bool = False) -> tuple[Tensor, Tensor]:
    """Returns attention's output ``[B, N, C]`` and the keys ``[B, H, N, D]``, whose mean over heads is the metric."""
    projected = F.linear(x, attn.in_proj_weight, attn.in_proj_bias)
    q, k, v = (t.transpose(1, 2) for t in projected.unflatten(-1, (3, attn.num_heads, attn.head_dim)).unbind(2))
    if masked:
        out = (
            F.scaled_dot_product_attention(q, k, v) if size is None else rivals.attention_broadcast_mask(q, k, v, size)
        )
    elif size is None:  # every size is 1 and its logarithm 0
        out = ((q * attn.head_dim**-0.5) @ k.transpose(-2, -1)).softmax(dim=-1) @ v
    else:
        out = rivals.attention(q, k, v, size)
    return attn.out_proj(out.transpose(1, 2).flatten(2)), k
