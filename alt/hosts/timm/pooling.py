"""Pooling and head of timm's vision transformers with merged tokens."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from timm.layers import AttentionPoolPrr
from torch import Tensor

from ..pooling import key_bias, size_weighted_mean

__all__ = ["head"]


def head(tower: Any, x: Tensor, size: Tensor | None) -> Tensor:
    """Returns what ``forward_head`` returns for normed merged tokens ``[B, n, C]`` of sizes ``[B, n]``.

    Every kind of pooling but none: ``global_pool=""`` returns tokens, and its caller restores the grid first.
    """
    if size is None or (tower.attn_pool is None and tower.global_pool in ("token", "")):
        return tower.forward_head(x)  # it reads the tokens that never merge
    pooled = _pool(tower, x, size)
    return tower.head(tower.head_drop(tower.fc_norm(pooled)))


def _pool(tower: Any, x: Tensor, size: Tensor) -> Tensor:
    # Eva has no such option: its attention pooling reads the prefix, its means do not.
    if not getattr(tower, "pool_include_prefix", tower.attn_pool is not None):
        first = tower.num_prefix_tokens
        x, size = x[:, first:], size[:, first:]
    if tower.attn_pool is not None:
        return _attention_pool(tower.attn_pool, x, size)
    if tower.global_pool == "max":
        return x.amax(dim=1)
    mean = size_weighted_mean(x, size)
    return mean if tower.global_pool == "avg" else 0.5 * (x.amax(dim=1) + mean)


def _attention_pool(pooler: Any, x: Tensor, size: Tensor) -> Tensor:
    bias = key_bias(size, x.dtype)
    assert bias is not None
    mask = bias[:, None, None, :]
    if not isinstance(pooler, AttentionPoolPrr):
        return pooler(x, attn_mask=mask)
    heads = pooler.pre_norm(x).unflatten(-1, (pooler.num_heads, -1)).transpose(1, 2)
    y = F.scaled_dot_product_attention(heads, heads, heads, attn_mask=mask)
    refined = pooler.post_norm(y.transpose(1, 2).flatten(2))
    return refined[:, 0] if pooler.pool == "token" else size_weighted_mean(refined, size)
