"""Pooling of merged tokens: every reader of several tokens weighs them by how many patches each stands for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .attention import attention_kind, key_bias


class KeySizes:
    """Sizes on their way into a pooler's call; an object, so that wrappers leave its dtype alone."""

    def __init__(self, size: Tensor) -> None:
        self.size = size


def size_weighted_mean(tokens: Tensor, size: Tensor) -> Tensor:
    """sum_i s_i x_i / sum_i s_i of ``tokens`` ``[B, n, C]`` with sizes ``[B, n]``: ``[B, C]`` in their dtype.

    The mean over the patches that were merged, if every patch had its token's value. Sums in float32 or better.
    """
    dtype = torch.float64 if tokens.dtype == torch.float64 else torch.float32
    weight = size.to(dtype) / size.sum(1, keepdim=True).to(dtype)
    return (tokens.to(dtype) * weight[..., None]).sum(1).to(tokens.dtype)


def global_pool(visual: Any, x: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """``(pooled, tokens)`` of an open_clip tower, with 'avg' weighted by size. The class token is no patch."""
    if visual.pool_type == "avg":
        return size_weighted_mean(x[:, 1:], size[:, 1:]), x[:, 1:]
    return visual._global_pool(x)


def pool(visual: Any, x: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor]:
    """``(pooled, tokens)`` of merged tokens ``[B, n, C]``, for every kind of pooling an open_clip tower has."""
    if size is None:
        return visual._pool(x)
    if visual.attn_pool is None:
        if visual.final_ln_after_pool:
            pooled, tokens = global_pool(visual, x, size)
            return visual.ln_post(pooled), tokens
        return global_pool(visual, visual.ln_post(x), size)
    sizes = KeySizes(size)
    if visual.attn_pool_contrastive is None:
        # The pooler's outputs are its queries, which stand for no patches: no sizes from here on.
        return visual._global_pool(visual.ln_post(visual.attn_pool(x, sizes=sizes)))
    x = visual.ln_post(x)
    tokens = visual.attn_pool(x, sizes=sizes)
    if visual.attn_pool_type == "parallel":
        return visual.attn_pool_contrastive(x, sizes=sizes), tokens
    return visual.attn_pool_contrastive(tokens), tokens


def attentional_pool(pooler: Any, x: Tensor, sizes: KeySizes) -> Tensor:
    """An AttentionalPooler's queries over merged tokens ``[B, n, C]``, with log s added to every key's logit."""
    x = pooler.ln_k(x)
    query = pooler.ln_q(pooler.query).unsqueeze(0).expand(x.shape[0], -1, -1)
    bias = key_bias(sizes.size, query.dtype)
    assert bias is not None
    if attention_kind(pooler.attn, packed=False) == "multihead":
        return pooler.attn(query, x, x, need_weights=False, key_padding_mask=bias)[0]
    return pooler.attn(query, k_x=x, v_x=x, attn_mask=bias[:, None, None, :])
