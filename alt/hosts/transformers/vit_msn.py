"""``ViTMSNModel``, alone or inside its classifier: ViT's model under other names."""

from __future__ import annotations

from types import MappingProxyType

from transformers.models.vit_msn import modeling_vit_msn as foreign

from ..merging import MergingBlock
from .vit import MergingViTModel, Vit, VitCallAttention

__all__ = ["HOST"]


class ViTMSNLayer(MergingBlock, foreign.ViTMSNLayer):
    pass


class ViTMSNModel(MergingViTModel, foreign.ViTMSNModel):
    pass


class Attention(VitCallAttention):
    known = foreign.ViTMSNAttention


class VitMsn(Vit):
    """The host of transformers' ``ViTMSNModel``."""

    name = "transformers.vit_msn"
    supports = "transformers' ViTMSNModel"
    patched = MappingProxyType({foreign.ViTMSNModel: ViTMSNModel, foreign.ViTMSNLayer: ViTMSNLayer})
    tower = foreign.ViTMSNModel
    layer = foreign.ViTMSNLayer
    attention = Attention
    owners = ("vit",)


HOST = VitMsn()
