"""Heads that map a video's embedding to class scores (Eq. 10)."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ClassHead", "adopt_rows"]


class ClassHead(nn.Module):
    r"""Scores of C classes for embeddings z of width d.

    ========== ======================================= =================================================
    "cosine"   :math:`\lambda \cos(c_i, z)`            :math:`\lambda` CLIP's logit scale; the default
    "literal"  :math:`c_i^\top z`                      Eq. 10 as printed: no norm of z, no temperature
    "linear"   :math:`w_i^\top z + b_i`                learned, no texts (the linear probe)
    ========== ======================================= =================================================

    c are the text embeddings of the classes, a buffer that is saved with the model. Without classes C is 0. A model
    may pass other texts to a call, also other ones for every video.

    Args:
        kind: which of the three. width: d.
    """

    embeddings: Tensor

    def __init__(self, kind: Literal["cosine", "literal", "linear"], width: int) -> None:
        super().__init__()
        self.kind = kind
        self.width = width
        if kind == "linear":
            self.weight = nn.Parameter(torch.empty(0, width))
            self.bias = nn.Parameter(torch.empty(0))
        else:
            self.register_buffer("embeddings", torch.empty(0, width))

    @property
    def num_classes(self) -> int:
        return (self.weight if self.kind == "linear" else self.embeddings).shape[0]

    def set_classes(self, count: int, embeddings: Tensor | None) -> None:
        """Sets the classes by their embeddings ``[count, d]``. A linear head is reinitialised and takes none."""
        if self.kind == "linear":
            weight = nn.init.trunc_normal_(self.weight.detach().new_empty(count, self.width), std=0.02)
            self.weight = nn.Parameter(weight, requires_grad=self.weight.requires_grad)
            self.bias = nn.Parameter(self.bias.detach().new_zeros(count), requires_grad=self.bias.requires_grad)
            return
        if not isinstance(embeddings, Tensor):
            got = type(embeddings).__name__
            raise TypeError(f"embeddings: a {self.kind} head needs a tensor [{count}, {self.width}], got {got}")
        if tuple(embeddings.shape) != (count, self.width):
            raise ValueError(
                f"embeddings: expected one row of the joint width for each class, [{count}, {self.width}], "
                f"got {list(embeddings.shape)}"
            )
        self.embeddings = embeddings.detach().to(self.embeddings).clone()

    def forward(self, z: Tensor, logit_scale: Tensor, texts: Tensor | None = None) -> Tensor:
        """Returns logits ``[B, C]`` of z ``[B, d]``; logit_scale is 0-d.

        texts: c of this call, ``[C, d]``, or ``[B, C, d]`` if they differ per video; None: the stored ones. A linear
        head reads none.
        """
        if self.kind == "linear":
            return F.linear(z, self.weight, self.bias)
        texts = self.embeddings if texts is None else texts
        if self.kind == "literal":
            return _products(z, texts)
        return logit_scale * _products(F.normalize(z, dim=-1), F.normalize(texts, dim=-1))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        names = ("weight", "bias") if self.kind == "linear" else ("embeddings",)
        adopt_rows(self, state_dict, prefix, names)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f"{self.kind}, width={self.width}, classes={self.num_classes}"


def _products(z: Tensor, texts: Tensor) -> Tensor:
    """Returns ``z_b . c_i`` ``[B, C]`` for texts ``[C, d]``, or ``z_b . c_bi`` for ``[B, C, d]``."""
    return F.linear(z, texts) if texts.dim() == 2 else (texts @ z.unsqueeze(-1)).squeeze(-1)


def adopt_rows(module: nn.Module, state_dict: dict[str, Any], prefix: str, names: tuple[str, ...]) -> None:
    """Resizes empty tensors to the rows of a state dict, so that a new model can load it.

    If a tensor has rows already, ``load_state_dict`` reports a different number as usual.
    """
    for name in names:
        own, new = getattr(module, name), state_dict.get(prefix + name)
        if new is None or own.shape[0] != 0 or new.shape[1:] != own.shape[1:]:
            continue
        value = own.detach().new_zeros(new.shape)
        if isinstance(own, nn.Parameter):
            value = nn.Parameter(value, requires_grad=own.requires_grad)
        setattr(module, name, value)
