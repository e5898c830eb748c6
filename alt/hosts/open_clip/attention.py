"""Attention modules of open_clip's blocks and poolers, of both generations.

Blocks of open_clip 3 have ``nn.MultiheadAttention``. Later versions have open_clip's own ``Attention``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from ..host import NORMALISED_KEYS, KeyProjection, Projected
from ..lora import base_layer
from ..made_weights import has_stepping_weights
from ..modules import has_hooks, qualified_name
from ..packed import MultiheadAttention, PackedAttention, require_packed

__all__ = ["OwnAttention", "read_attention"]


def read_attention(
    module: nn.Module, *, names_keys: bool = False, packed: bool = True
) -> MultiheadAttention | OwnAttention:
    """Returns the reader of an attention module, which may be inside peft's LoRA wrappers.

    Args:
        names_keys: the block passes keys and values beside the queries, so a pre-hook sees and may change each.
        packed: require one packed projection of query, key and value, as in self-attention.

    Raises:
        TypeError: the module is of a kind whose keys and masks are not known here.
    """
    base = base_layer(module)
    multihead = isinstance(base, nn.MultiheadAttention)
    if multihead:
        MultiheadAttention.check(base)
    elif not any(_is_own(cls) for cls in type(base).__mro__):
        raise TypeError(
            "patching supports blocks with torch.nn.MultiheadAttention or open_clip's Attention, bare or in a "
            f"peft LoRA wrapper; got {qualified_name(module)}, whose key projection is unknown"
        )
    if packed:
        require_packed(base)
    return MultiheadAttention(module, base) if multihead else OwnAttention(module, base, names_keys)


def _is_own(cls: type) -> bool:
    # By name, because the two generations are different classes of the same name.
    return cls.__module__ == "open_clip.transformer" and cls.__qualname__ == "Attention"


class OwnAttention(PackedAttention):
    """open_clip's ``Attention``: q/k norm or scaled cosine, scale of heads, norm before the output projection."""

    def __init__(self, module: Any, base: Any, names_keys: bool) -> None:
        super().__init__(module, base)
        self.names_keys = names_keys

    def can_fuse(self) -> bool:
        if has_hooks(self.module) or has_stepping_weights(self.module):
            return False
        # open_clip's own call handles dropout of attention weights, and classes derived from its own.
        exact = type_before_parametrizations(self.module)
        return _is_own(exact) and not (self.module.training and self.module.attn_drop.p > 0)

    def normalise(self, q: Tensor, k: Tensor, v: Tensor) -> Projected:
        attn = self.base
        if attn.logit_scale is not None:
            # Scaled cosine attention (Swin v2): exp(logit_scale) replaces 1 / sqrt(D).
            q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
            q = q * torch.clamp(attn.logit_scale, max=attn.logit_scale_max).exp()
            scale = 1.0
        else:
            q, k, scale = attn.ln_q(q), attn.ln_k(k), attn.scale
        # Norms and scales may be float32 with a bfloat16 projection: attention uses the projection's dtype.
        return Projected(q.to(v.dtype), k.to(v.dtype), v, scale, k)

    def join_heads(self, y: Tensor, x: Tensor) -> Tensor:
        attn = self.base
        if attn.head_scale is not None:
            y = y * attn.head_scale
        return attn.out_drop(attn.out_proj(attn.ln_inner(y.transpose(1, 2).reshape(x.shape))))

    def key_projection(self) -> KeyProjection:
        if getattr(self.base, "logit_scale", None) is not None or not isinstance(self.base.ln_k, nn.Identity):
            raise TypeError(NORMALISED_KEYS)
        return super().key_projection()

    def normalise_keys(self, k: Tensor) -> Tensor:
        if getattr(self.base, "logit_scale", None) is not None:
            return F.normalize(k, dim=-1)
        return self.base.ln_k.forward(k) if hasattr(self.base, "ln_k") else k

    def call_module(self, x: Tensor, bias: Tensor | None, positions: Tensor | None) -> Tensor:
        sources = {"k_x": x, "v_x": x} if self.names_keys else {}
        # Four dimensions: the released class would read three as [B * H, N, N].
        return self.module(x, **sources, attn_mask=None if bias is None else bias[:, None, None, :])

    def call_pooler(self, query: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
        """Calls the module with ``query`` ``[B, Q, C]`` over keys and values ``x`` ``[B, n, C]``."""
        mask = None if bias is None else bias[:, None, None, :]
        return self.module(query, k_x=x, v_x=x, attn_mask=mask)
