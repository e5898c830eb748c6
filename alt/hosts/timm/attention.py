"""timm's ``Attention``: a packed projection, norms of queries and keys, a norm and a gate before the output."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import Attention
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from ..host import NORMALISED_KEYS, HostAttention, KeyProjection, Projected
from ..lora import read_linear
from ..made_weights import without_steps
from ..modules import has_hooks, require_gathered
from ..packed import split_heads

__all__ = ["TimmAttention"]


class TimmAttention(HostAttention):
    """Reads timm's ``Attention``. Its submodules run through their own calls."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def can_fuse(self) -> bool:
        module = self.module
        exact = type_before_parametrizations(module) is Attention
        return exact and not has_hooks(module) and not (module.training and module.attn_drop.p > 0)

    def project(self, x: Tensor, positions: Tensor | None) -> Projected:
        attn = self.module
        q, k, v = split_heads(attn.qkv(x), attn.num_heads)
        q, k = attn.q_norm(q), attn.k_norm(k)
        # Norms may return float32 under autocast: attention uses the projection's dtype.
        return Projected(q.to(v.dtype), k.to(v.dtype), v, attn.scale, k)

    def join_heads(self, y: Tensor, x: Tensor) -> Tensor:
        attn = self.module
        joined = attn.norm(y.transpose(1, 2).flatten(2))
        if attn.gate is not None:
            joined = joined * attn.gate(x).sigmoid()
        return attn.proj_drop(attn.proj(joined))

    def key_projection(self) -> KeyProjection:
        attn = self.module
        if not isinstance(attn.k_norm, nn.Identity):
            raise TypeError(NORMALISED_KEYS)
        with torch.no_grad(), without_steps(attn):
            weight, bias = read_linear(attn.qkv)
        key = slice(len(weight) // 3, 2 * len(weight) // 3)
        return KeyProjection(weight[key], None if bias is None else bias[key], attn.num_heads)

    def project_keys(self, x: Tensor, positions: Tensor | None) -> Tensor:
        attn = self.module
        with torch.no_grad(), without_steps(self.module):
            for weight in attn.qkv.parameters():
                require_gathered(weight)
            # Without hooks, which fire once, in the attention itself.
            return attn.k_norm.forward(split_heads(attn.qkv.forward(x), attn.num_heads)[1])

    def call_module(self, x: Tensor, bias: Tensor | None, positions: Tensor | None) -> Tensor:
        mask = None if bias is None else bias[:, None, None, :]
        return self.module(x, attn_mask=mask, is_causal=False)
