"""``DeiTModel``, alone or inside its classifiers: ViT's model with a distillation token."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from transformers.models.deit import modeling_deit as foreign

from ..merging import MergingBlock
from .vit import MergingViTModel, Vit, VitCallAttention

__all__ = ["HOST"]


class DeiTLayer(MergingBlock, foreign.DeiTLayer):
    pass


class DeiTModel(MergingViTModel, foreign.DeiTModel):
    pass


class Attention(VitCallAttention):
    known = foreign.DeiTAttention


class Deit(Vit):
    """The host of transformers' ``DeiTModel``."""

    name = "transformers.deit"
    supports = "transformers' DeiTModel"
    patched = MappingProxyType({foreign.DeiTModel: DeiTModel, foreign.DeiTLayer: DeiTLayer})
    tower = foreign.DeiTModel
    layer = foreign.DeiTLayer
    attention = Attention
    owners = ("deit",)

    def num_protected(self, tower: Any) -> int:
        return 2


HOST = Deit()
