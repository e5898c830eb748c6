"""Attention modules of transformers' vision models: three projections, and an implementation by name."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.parametrize import type_before_parametrizations

from ..host import HostAttention, KeyProjection, Projected
from ..lora import read_linear
from ..made_weights import without_steps
from ..modules import has_hooks, require_gathered

__all__ = ["ClipStyleAttention", "SeparateAttention", "VitStyleAttention"]

_TAKES_BIAS = ("eager", "sdpa")


class SeparateAttention(HostAttention):
    """Base of the families' attention: ``q_proj``, ``k_proj`` and ``v_proj``, each run through its own call.

    Attributes:
        known: the exact class.
    """

    known: type

    def __init__(self, module: Any) -> None:
        self.module = module

    @abstractmethod
    def scale(self) -> float:
        """Returns the scale of the logits."""

    @abstractmethod
    def dropout(self) -> float:
        """Returns the probability with which training drops attention weights."""

    @abstractmethod
    def project_out(self, y: Tensor) -> Tensor:
        """Applies the output projection to joined heads ``[B, N, C]``."""

    def call(self, x: Tensor, mask: Tensor | None, positions: Tensor | None) -> Tensor:
        """Calls the module with the arguments that its block passes."""
        return self.module(hidden_states=x, attention_mask=mask)[0]

    def can_fuse(self) -> bool:
        exact = type_before_parametrizations(self.module) is self.known
        drops = self.module.training and self.dropout() > 0
        return exact and not drops and not has_hooks(self.module, _records_outputs)

    def project(self, x: Tensor, positions: Tensor | None) -> Projected:
        module = self.module
        q, k, v = (self._split(projection(x)) for projection in (module.q_proj, module.k_proj, module.v_proj))
        return Projected(q, k, v, self.scale(), k)

    def join_heads(self, y: Tensor, x: Tensor) -> Tensor:
        return self.project_out(y.transpose(1, 2).flatten(2))

    def key_projection(self) -> KeyProjection:
        with torch.no_grad(), without_steps(self.module):
            weight, bias = read_linear(self.module.k_proj)
        return KeyProjection(weight, bias, len(weight) // self.module.head_dim)

    def project_keys(self, x: Tensor, positions: Tensor | None) -> Tensor:
        projection = self.module.k_proj
        with torch.no_grad(), without_steps(self.module):
            for weight in projection.parameters():
                require_gathered(weight)
            return self._split(projection.forward(x))  # its hooks fire once, in the attention itself

    def call_module(self, x: Tensor, bias: Tensor | None, positions: Tensor | None) -> Tensor:
        name = self.module.config._attn_implementation
        if bias is not None and name not in _TAKES_BIAS:
            raise ValueError(
                f"attention implementation {name!r} takes no token sizes, and this attention carries hooks or drops "
                "weights, so it must run through its own call: model.set_attn_implementation('sdpa') makes it work"
            )
        return self.call(x, None if bias is None else bias[:, None, None, :], positions)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.module.head_dim)).transpose(1, 2)


class ClipStyleAttention(SeparateAttention):
    """Attention with the attribute names of transformers' CLIP."""

    def scale(self) -> float:
        return self.module.scale

    def dropout(self) -> float:
        return self.module.dropout

    def project_out(self, y: Tensor) -> Tensor:
        return self.module.out_proj(y)


class VitStyleAttention(SeparateAttention):
    """Attention with the attribute names of transformers' ViT."""

    def scale(self) -> float:
        return self.module.scaling

    def dropout(self) -> float:
        return self.module.attention_dropout

    def project_out(self, y: Tensor) -> Tensor:
        return self.module.o_proj(y)


def _records_outputs(hook: Any) -> bool:
    """Returns True for the hooks that transformers leaves in a model whose hidden states or attentions were asked for.

    They record nothing here: a patched model collects its own hidden states, and refuses attentions.
    """
    return getattr(hook, "__module__", "") == "transformers.utils.output_capturing"
