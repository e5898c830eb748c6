"""``IJepaModel``, alone or inside its classifier: ViT's model without class token."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from torch import Tensor
from transformers.models.ijepa import modeling_ijepa as foreign

from ..merging import MergingBlock
from ..pooling import size_weighted_mean
from .vit import MergingViTModel, Vit, VitCallAttention

__all__ = ["HOST"]


class IJepaLayer(MergingBlock, foreign.IJepaLayer):
    pass


class IJepaModel(MergingViTModel, foreign.IJepaModel):
    pass


class Attention(VitCallAttention):
    known = foreign.IJepaAttention


class IJepa(Vit):
    """The host of transformers' ``IJepaModel``."""

    name = "transformers.ijepa"
    supports = "transformers' IJepaModel"
    patched = MappingProxyType({foreign.IJepaModel: IJepaModel, foreign.IJepaLayer: IJepaLayer})
    tower = foreign.IJepaModel
    layer = foreign.IJepaLayer
    attention = Attention
    owners = ("ijepa",)

    def check_tower(self, tower: Any) -> None:
        super().check_tower(tower)
        if tower.pooler is not None:
            raise TypeError(
                "the image tower: an IJepaModel without a pooler is supported (add_pooling_layer=False, the default), "
                "this one pools the first patch, which may have merged"
            )

    def num_protected(self, tower: Any) -> int:
        return 0

    def pool(self, tower: Any, x: Tensor, size: Tensor | None) -> Tensor:
        return size_weighted_mean(tower.layernorm(x), size)


HOST = IJepa()
