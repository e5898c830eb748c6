"""``ViTModel``, alone or inside ``ViTForImageClassification`` and ``ViTForMaskedImageModeling``."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from transformers.models.vit import modeling_vit as foreign
from transformers.utils.constants import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD
from transformers.utils.output_capturing import capture_outputs

from ..host import BlockParts, Embedded
from ..merging import MergingBlock
from .attention import VitStyleAttention
from .family import Family
from .merging import MergingVisionModel

__all__ = ["HOST"]


class ViTLayer(MergingBlock, foreign.ViTLayer):
    pass


class ViTModel(MergingVisionModel, foreign.ViTModel):
    @capture_outputs  # no surrounding model records what the layers return: their tokens are merged
    def forward(
        self,
        pixel_values: Any = None,
        bool_masked_pos: Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        x = self.embeddings(
            pixel_values.to(self.embeddings.patch_embeddings.projection.weight.dtype),
            bool_masked_pos=bool_masked_pos,
            interpolate_pos_encoding=interpolate_pos_encoding,
        )
        return self.run_merged(Embedded(x), {**kwargs, "attention_mask": attention_mask})


class VitAttention(VitStyleAttention):
    known = foreign.ViTAttention

    def call(self, x: Tensor, mask: Tensor | None, positions: Tensor | None) -> Tensor:
        return self.module(x, mask)[0]


class Vit(Family):
    """The host of transformers' ``ViTModel``."""

    name = "transformers.vit"
    supports = "transformers' ViTModel"
    patched = MappingProxyType({foreign.ViTModel: ViTModel, foreign.ViTLayer: ViTLayer})
    tower = foreign.ViTModel
    encoder = None
    layer = foreign.ViTLayer
    attention = VitAttention
    owners = ("vit",)
    mean, std = tuple(IMAGENET_STANDARD_MEAN), tuple(IMAGENET_STANDARD_STD)

    def encoder_of(self, tower: Any) -> Any:
        return tower

    def block_parts(self, block: Any, tower: Any, index: int) -> BlockParts:
        attention = VitAttention(block.attention)

        def feed_forward(normed: Tensor) -> Tensor:
            return block.dropout(block.mlp(normed))

        return BlockParts(block.layernorm_before, attention, block.dropout, block.layernorm_after, feed_forward)

    def finish(self, tower: Any, x: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor | None]:
        normed = tower.layernorm(x)
        return normed, None if tower.pooler is None else tower.pooler(normed)

    def position_embedding(self, tower: Any) -> torch.nn.Parameter:
        return tower.embeddings.position_embeddings


HOST = Vit()
