"""Pooling of open_clip's image towers with merged tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..pooling import KeySizes, key_bias, size_weighted_mean
from .attention import read_attention

__all__ = ["attentional_pool", "pool"]


def pool(visual: Any, x: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns ``(pooled, tokens)`` of merged tokens ``[B, n, C]``, for every kind of pooling of a tower.

    The final norm is included, the projection is not. The class token is not a patch, so means leave it out.
    """
    if size is None:
        return visual._pool(x)
    if visual.attn_pool is None:
        if visual.final_ln_after_pool:
            pooled, tokens = _global_pool(visual, x, size)
            return visual.ln_post(pooled), tokens
        return _global_pool(visual, visual.ln_post(x), size)
    sizes = KeySizes(size)
    if visual.attn_pool_contrastive is None:
        # The pooler's outputs are its queries. They represent no patches, so sizes end here.
        return visual._global_pool(visual.ln_post(visual.attn_pool(x, sizes=sizes)))
    x = visual.ln_post(x)
    tokens = visual.attn_pool(x, sizes=sizes)
    if visual.attn_pool_type == "parallel":
        return visual.attn_pool_contrastive(x, sizes=sizes), tokens
    return visual.attn_pool_contrastive(tokens), tokens


def attentional_pool(pooler: Any, x: Tensor, sizes: KeySizes) -> Tensor:
    """Runs an AttentionalPooler over merged tokens ``[B, n, C]``, with ``log s`` added to the logits."""
    x = pooler.ln_k(x)
    query = pooler.ln_q(pooler.query).unsqueeze(0).expand(x.shape[0], -1, -1)
    return read_attention(pooler.attn, packed=False).call_pooler(query, x, key_bias(sizes.size, query.dtype))


def _global_pool(visual: Any, x: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    if visual.pool_type == "avg":
        return size_weighted_mean(x[:, 1:], size[:, 1:]), x[:, 1:]
    return visual._global_pool(x)
