"""timm's attention: norms of queries and keys, a norm and a gate before the output, and in ``Eva`` rotary positions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention, AttentionRope, apply_rot_embed_cat
from timm.models.eva import EvaAttention
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from ..host import NORMALISED_KEYS, HostAttention, KeyProjection, Projected
from ..lora import read_linear
from ..made_weights import without_steps
from ..modules import has_hooks, require_gathered
from ..packed import split_heads
from .rotary import sin_cos

__all__ = ["RotaryAttention", "TimmAttention"]


class TimmAttention(HostAttention):
    """Reads timm's ``Attention``. Its submodules run through their own calls.

    Attributes:
        known: the exact classes.
    """

    known: tuple[type, ...] = (Attention,)

    def __init__(self, module: Any) -> None:
        self.module = module

    def can_fuse(self) -> bool:
        module = self.module
        exact = type_before_parametrizations(module) in self.known
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
        with torch.no_grad(), without_steps(attn):
            for weight in attn.qkv.parameters():
                require_gathered(weight)
            # Without hooks, which fire once, in the attention itself.
            return attn.k_norm.forward(split_heads(attn.qkv.forward(x), attn.num_heads)[1])

    def call_module(self, x: Tensor, bias: Tensor | None, positions: Tensor | None) -> Tensor:
        mask = None if bias is None else bias[:, None, None, :]
        return self.module(x, attn_mask=mask, is_causal=False)


class RotaryAttention(TimmAttention):
    """Reads timm's ``EvaAttention`` and ``AttentionRope``: one or three projections, q and k rotated by position.

    The keys for matching are those before the rotation. Several heads of queries may share a head of keys.
    """

    known = (EvaAttention, AttentionRope)

    def __init__(self, module: Any, rope: Any, index: int) -> None:
        super().__init__(module)
        self.rope = rope
        self.index = index

    def project(self, x: Tensor, positions: Tensor | None) -> Projected:
        attn = self.module
        q, k, v = self._heads(x)
        q, k = attn.q_norm(q), attn.k_norm(k)
        keys = k
        if positions is not None:
            table = self._table(positions)
            q, k = (apply_rot_embed_cat(part, table, half=attn.rotate_half) for part in (q, k))
        k, groups = k.to(v.dtype), q.shape[1] // k.shape[1]
        if groups > 1:
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        return Projected(q.to(v.dtype), k, v, attn.scale, keys)

    def _heads(self, x: Tensor) -> tuple[Tensor, ...]:
        attn = self.module
        if attn.qkv is None:
            projections = (attn.q_proj, attn.k_proj, attn.v_proj)
            return tuple(part(x).unflatten(-1, (-1, attn.head_dim)).transpose(1, 2) for part in projections)
        bias = self._bias()
        if self._reads_weight():
            return split_heads(F.linear(x, attn.qkv.weight, bias), attn.num_heads)
        packed = attn.qkv(x)
        return split_heads(packed if bias is None else packed + bias, attn.num_heads)

    def _keys(self, x: Tensor) -> Tensor:
        attn = self.module
        if attn.qkv is None:
            return attn.k_proj.forward(x).unflatten(-1, (-1, attn.head_dim)).transpose(1, 2)
        bias = self._bias()
        if self._reads_weight():
            weight, bias, heads = self._packed_keys(attn.qkv.weight, bias)
            return F.linear(x, weight, bias).unflatten(-1, (heads, -1)).transpose(1, 2)
        packed = attn.qkv.forward(x)
        return split_heads(packed if bias is None else packed + bias, attn.num_heads)[1]

    def _reads_weight(self) -> bool:
        """Returns True if timm reads the packed weight and does not call its module, whose adapters have no effect."""
        return getattr(self.module, "q_bias", None) is not None and not self.module.qkv_bias_separate

    def _bias(self) -> Tensor | None:
        """Returns the bias that lies beside the packed projection: of queries and values, and zeros for the keys."""
        attn = self.module
        if getattr(attn, "q_bias", None) is None:
            return None
        return torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])

    def _table(self, positions: Tensor) -> Tensor:
        return sin_cos(self.rope, self.index, positions)

    def key_projection(self) -> KeyProjection:
        attn = self.module
        if not isinstance(attn.k_norm, nn.Identity):
            raise TypeError(NORMALISED_KEYS)
        with torch.no_grad(), without_steps(attn):
            if attn.qkv is None:
                weight, bias = read_linear(attn.k_proj)
                return KeyProjection(weight, bias, len(weight) // attn.head_dim)
            if self._reads_weight():
                return self._packed_keys(attn.qkv.weight, self._bias())
            weight, bias = read_linear(attn.qkv)
            return self._packed_keys(weight, self._bias() if bias is None else bias)

    def _packed_keys(self, weight: Tensor, bias: Tensor | None) -> KeyProjection:
        key = slice(len(weight) // 3, 2 * len(weight) // 3)
        return KeyProjection(weight[key], None if bias is None else bias[key], self.module.num_heads)

    def project_keys(self, x: Tensor, positions: Tensor | None) -> Tensor:
        attn = self.module
        with torch.no_grad(), without_steps(attn):
            for weight in (attn.k_proj if attn.qkv is None else attn.qkv).parameters():
                require_gathered(weight)
            k = attn.k_norm.forward(self._keys(x))  # without hooks, which fire once, in the attention itself
            return k if positions is None else apply_rot_embed_cat(k, self._table(positions), half=attn.rotate_half)

    def call_module(self, x: Tensor, bias: Tensor | None, positions: Tensor | None) -> Tensor:
        mask = None if bias is None else bias[:, None, None, :]
        if positions is None:
            return self.module(x, attn_mask=mask)
        return self.module(x, rope=self._table(positions[:, self.module.num_prefix_tokens :]), attn_mask=mask)
