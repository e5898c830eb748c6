"""``ViTModel``, alone or inside ``ViTForImageClassification`` and ``ViTForMaskedImageModeling``."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.vit import modeling_vit as foreign
from transformers.utils.constants import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD
from transformers.utils.output_capturing import capture_outputs

from ..host import BlockParts, Embedded
from ..merging import MergingBlock
from .attention import SeparateAttention, VitStyleAttention
from .family import Family
from .merging import MergingVisionModel

__all__ = ["HOST", "MergingViTModel", "Vit", "VitCallAttention"]


class ViTLayer(MergingBlock, foreign.ViTLayer):
    pass


class MergingViTModel(MergingVisionModel):
    """Mix-in of the models with the parts of ViT's."""

    @capture_outputs  # no surrounding model records what the layers return: their tokens are merged
    def forward(
        self,
        pixel_values: Any = None,
        bool_masked_pos: Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        embeddings = self.embeddings  # type: ignore[attr-defined]
        x = embeddings(
            pixel_values.to(embeddings.patch_embeddings.projection.weight.dtype),
            bool_masked_pos=bool_masked_pos,
            interpolate_pos_encoding=interpolate_pos_encoding,
        )
        return self.run_merged(Embedded(x), {**kwargs, "attention_mask": attention_mask})


class ViTModel(MergingViTModel, foreign.ViTModel):
    pass


class VitCallAttention(VitStyleAttention):
    """Attention that ViT's layers call with positional arguments."""

    def call(self, x: Tensor, mask: Tensor | None, positions: Tensor | None) -> Tensor:
        return self.module(x, mask)[0]


class VitAttention(VitCallAttention):
    known = foreign.ViTAttention


class Vit(Family):
    """The host of transformers' ``ViTModel``."""

    name = "transformers.vit"
    supports = "transformers' ViTModel"
    patched: Mapping[type, type] = MappingProxyType({foreign.ViTModel: ViTModel, foreign.ViTLayer: ViTLayer})
    tower: type[nn.Module] = foreign.ViTModel
    encoder = None
    layer: type[nn.Module] = foreign.ViTLayer
    attention: type[SeparateAttention] = VitAttention
    owners: tuple[str, ...] = ("vit",)
    mean, std = tuple(IMAGENET_STANDARD_MEAN), tuple(IMAGENET_STANDARD_STD)

    def encoder_of(self, tower: Any) -> Any:
        return tower

    def block_parts(self, block: Any, tower: Any, index: int) -> BlockParts:
        attention = self.attention(block.attention)

        def feed_forward(normed: Tensor) -> Tensor:
            return block.dropout(block.mlp(normed))

        return BlockParts(block.layernorm_before, attention, block.dropout, block.layernorm_after, feed_forward)

    def finish(self, tower: Any, x: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor | None]:
        normed = tower.layernorm(x)
        pooler = getattr(tower, "pooler", None)  # ViTMSNModel has none
        return normed, None if pooler is None else pooler(normed)

    def position_embedding(self, tower: Any) -> torch.nn.Parameter:
        return tower.embeddings.position_embeddings


HOST = Vit()
