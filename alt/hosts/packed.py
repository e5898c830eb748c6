"""Attention modules with one packed projection ``in_proj_weight``, bare or inside peft's LoRA wrappers.

``torch.nn.MultiheadAttention`` is one, and other packages keep its parameter layout. A LoRA wrapper of peft adds
``delta`` to that weight, and the keys for matching include it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from .host import HostAttention, KeyProjection, Projected
from .lora import base_layer, lora_deltas
from .made_weights import has_stepping_weights, without_steps
from .modules import has_hooks, qualified_name, require_gathered

__all__ = ["MultiheadAttention", "PackedAttention", "read_multihead", "require_packed", "split_heads"]


def read_multihead(module: Any, role: str, *, batch_first: bool = True) -> MultiheadAttention:
    """Returns the reader of a block's ``torch.nn.MultiheadAttention``, bare or inside peft's LoRA wrappers.

    Args:
        role: of the module, in words. batch_first: the layout that the block passes.

    Raises:
        TypeError: it is another module, has another layout, or projects query, key and value separately.
    """
    base = base_layer(module)
    if not isinstance(base, nn.MultiheadAttention):
        raise TypeError(
            f"patching supports torch.nn.MultiheadAttention as {role}, bare or in a peft LoRA wrapper, got "
            f"{qualified_name(module)}"
        )
    MultiheadAttention.check(base, batch_first=batch_first)
    require_packed(base)
    return MultiheadAttention(module, base)


def require_packed(base: Any) -> None:
    """Raises TypeError unless query, key and value are projected by one packed weight."""
    if base._parameters.get("in_proj_weight", True) is None:  # reads no weight, so takes no step of one
        raise TypeError(
            f"patching supports self-attention with one packed in_proj_weight; this {qualified_name(base)} "
            "projects query, key and value separately"
        )


def split_heads(packed: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns query, key and value ``[B, H, N, D]`` of ``[B, N, 3 H D]``, all views."""
    # The three gradients are stacked along the unbound dimension. Unbinding before transposing lets that write the
    # packed gradient at once; the other order stacks, and then copies all of it into this layout.
    q, k, v = packed.unflatten(-1, (3, num_heads, -1)).unbind(2)
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


class PackedAttention(HostAttention):
    """Base of attention modules with a packed projection. ``module`` may be a LoRA wrapper around ``base``."""

    def __init__(self, module: Any, base: Any) -> None:
        self.module = module
        self.base = base

    @abstractmethod
    def normalise(self, q: Tensor, k: Tensor, v: Tensor) -> Projected:
        """Applies the module's norms and scale to projected heads ``[B, H, N, D]``."""

    def project(self, x: Tensor, positions: Tensor | None) -> Projected:
        base = self.base
        return self.normalise(*split_heads(F.linear(x, base.in_proj_weight, base.in_proj_bias), base.num_heads))

    def project_beside(
        self, x: Tensor, positions: Tensor | None, make: Callable[[], tuple[Tensor, Tensor | None]]
    ) -> tuple[Projected, Tensor]:
        packed = self.base.in_proj_weight
        if not x.is_cuda or (torch.is_grad_enabled() and (x.requires_grad or packed.requires_grad)):
            # On a CPU a copy of the weights costs more than reading x twice; the gradient of a slice is padded with
            # zeros, which costs more on a GPU too.
            return super().project_beside(x, positions, make)
        return self.project_columns(x, *make())

    def project_columns(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Projected, Tensor]:
        """Does :meth:`project_beside` by one product with ``weight`` as more columns of the packed projection."""
        base = self.base
        packed, packed_bias = base.in_proj_weight, base.in_proj_bias
        both = None if bias is None else torch.cat([packed_bias, bias])
        heads, beside = F.linear(x, torch.cat([packed, weight]), both).split([len(packed), len(weight)], -1)
        return self.normalise(*split_heads(heads, base.num_heads)), beside.detach()

    def normalise_keys(self, k: Tensor) -> Tensor:
        """Applies the module's norm of keys without its hooks, which fire once, in the attention itself."""
        return k

    def key_projection(self) -> KeyProjection:
        base = self.base
        with torch.no_grad(), without_steps(self.module):
            weight = base.in_proj_weight
            require_gathered(weight)
            for delta in lora_deltas(self.module, "in_proj_weight"):
                weight = weight + delta.to(weight.dtype)
            width = weight.shape[0] // 3  # rows of the packed projection: queries, keys, values
            key = slice(width, 2 * width)
            bias = base.in_proj_bias
            return KeyProjection(weight[key], None if bias is None else bias[key], base.num_heads)

    def project_keys(self, x: Tensor, positions: Tensor | None) -> Tensor:
        with torch.no_grad(), without_steps(self.module):
            weight, bias, heads = PackedAttention.key_projection(self)
            return self.normalise_keys(F.linear(x, weight, bias).unflatten(-1, (heads, -1)).transpose(1, 2))


class MultiheadAttention(PackedAttention):
    """``torch.nn.MultiheadAttention`` as self-attention, and as the attention of a pooler."""

    @staticmethod
    def check(base: nn.MultiheadAttention, *, batch_first: bool = True) -> None:
        """Raises TypeError for a layout that is not supported."""
        if base.bias_k is not None or base.add_zero_attn or base.batch_first != batch_first:
            raise TypeError(
                f"patching supports nn.MultiheadAttention with batch_first={batch_first}, without add_bias_kv and "
                "add_zero_attn; this one has another layout"
            )

    def can_fuse(self) -> bool:
        if has_hooks(self.module) or has_stepping_weights(self.module):
            return False
        # Other parametrized weights may be fused: they are read by attribute, as the host reads them.
        exact = type_before_parametrizations(self.module)
        return exact is nn.MultiheadAttention and not (self.module.training and self.module.dropout > 0)

    def normalise(self, q: Tensor, k: Tensor, v: Tensor) -> Projected:
        return Projected(q, k, v, None, k)

    def join_heads(self, y: Tensor, x: Tensor) -> Tensor:
        # nn.MultiheadAttention too reads out_proj and never calls it.
        out = self.base.out_proj
        return F.linear(y.transpose(1, 2).reshape(x.shape), out.weight, out.bias)

    def call_module(self, x: Tensor, bias: Tensor | None, positions: Tensor | None) -> Tensor:
        return self.call_pooler(x, x, bias)

    def call_pooler(self, query: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
        """Calls the module with ``query`` ``[B, Q, C]`` over keys and values ``x`` ``[B, n, C]``."""
        mask = {} if bias is None else {"key_padding_mask": bias}
        if self.base.batch_first:
            return self.module(query, x, x, need_weights=False, **mask)[0]
        swapped = x.transpose(0, 1)
        query = swapped if query is x else query.transpose(0, 1)  # the module's fast path asks for one object
        return self.module(query, swapped, swapped, need_weights=False, **mask)[0].transpose(0, 1)
