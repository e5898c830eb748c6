"""``Siglip2VisionModel`` (NaFlex), alone or inside ``Siglip2Model`` and ``Siglip2ForImageClassification``.

Images keep their aspect ratio. Each comes as a row of patches, and shorter rows are padded to the longest. Padding has
size 0: no token attends to it, it merges with nothing while a row has other pairs, and it is not pooled.
"""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.models.siglip2 import modeling_siglip2 as foreign
from transformers.models.siglip2.configuration_siglip2 import Siglip2Config, Siglip2VisionConfig
from transformers.utils.output_capturing import capture_outputs

from ..host import Embedded
from ..merging import MergingBlock
from .attention import ClipStyleAttention
from .merging import MergingEncoder, MergingVisionModel
from .siglip import MergingHead, Siglip

__all__ = ["HOST", "PatchRows"]


class PatchRows(NamedTuple):
    """The inputs of the tower, under the names of its ``forward``.

    pixel_values: ``[B, N, 3 P P]``, padded rows of patches. pixel_attention_mask: ``[B, N]``, 0 for padding; None:
    there is none. spatial_shapes: int ``[B, 2]``, patches down and across.
    """

    pixel_values: Tensor
    pixel_attention_mask: Tensor | None
    spatial_shapes: Tensor


class Siglip2EncoderLayer(MergingBlock, foreign.Siglip2EncoderLayer):
    pass


class Siglip2Encoder(MergingEncoder, foreign.Siglip2Encoder):
    pass


class Siglip2MultiheadAttentionPoolingHead(MergingHead, foreign.Siglip2MultiheadAttentionPoolingHead):
    pass


class Siglip2VisionModel(MergingVisionModel, foreign.Siglip2VisionModel):
    @capture_outputs  # no surrounding model records what the layers return: their tokens are merged
    def forward(
        self, pixel_values: Tensor, pixel_attention_mask: Tensor | None, spatial_shapes: Tensor, **kwargs: Any
    ) -> Any:
        rows = PatchRows(pixel_values, pixel_attention_mask, spatial_shapes)
        return self.run_merged(HOST.embed(self, rows), kwargs)


class FakeVisionEmbeddings(foreign.Siglip2VisionEmbeddings):
    """The embeddings on fake tensors, whose shapes the host could not read; resizing positions counts as nothing."""

    @staticmethod
    def resize_positional_embeddings(positional_embeddings: Tensor, spatial_shapes: Tensor, max_length: int) -> Tensor:
        return positional_embeddings.new_empty(len(spatial_shapes), max_length, positional_embeddings.shape[-1])


class Siglip2Attention(ClipStyleAttention):
    known = foreign.Siglip2Attention


class Siglip2(Siglip):
    """The host of transformers' ``Siglip2VisionModel``."""

    name = "transformers.siglip2"
    supports = "transformers' Siglip2VisionModel"
    patched = MappingProxyType(
        {
            foreign.Siglip2VisionModel: Siglip2VisionModel,
            foreign.Siglip2Encoder: Siglip2Encoder,
            foreign.Siglip2EncoderLayer: Siglip2EncoderLayer,
            foreign.Siglip2MultiheadAttentionPoolingHead: Siglip2MultiheadAttentionPoolingHead,
        }
    )
    tower = foreign.Siglip2VisionModel
    encoder = foreign.Siglip2Encoder
    layer = foreign.Siglip2EncoderLayer
    attention = Siglip2Attention
    pooling_head = foreign.Siglip2MultiheadAttentionPoolingHead
    clip, clip_config, tower_config = foreign.Siglip2Model, Siglip2Config, Siglip2VisionConfig
    image_fields = ("num_channels", "num_patches", "patch_size", "vision_use_head")

    def grid(self, tower: Any) -> tuple[int, int]:
        side = math.isqrt(tower.config.num_patches)
        return side, side

    def image_size(self, tower: Any) -> tuple[int, int]:
        down, across = self.grid(tower)
        return down * tower.config.patch_size, across * tower.config.patch_size

    def prepare_trace(self, tower: Any) -> None:
        tower.embeddings.__class__ = FakeVisionEmbeddings

    def embed(self, tower: Any, images: Tensor | PatchRows) -> Embedded:
        rows = self.arguments(tower, images) if isinstance(images, Tensor) else images
        x = tower.embeddings(rows.pixel_values, rows.spatial_shapes)
        mask = rows.pixel_attention_mask
        return Embedded(x, None if mask is None else (mask != 0).float())

    def arguments(self, tower: Any, images: Tensor) -> PatchRows:
        """Returns images ``[B, 3, H, W]`` as rows of patches without padding, each patch ``[P, P, 3]`` in memory."""
        side = tower.config.patch_size
        height, width = images.shape[-2:]
        if height % side or width % side:
            raise ValueError(f"images must have sides that {side} divides, got {height} x {width} pixels")
        patches = images.unflatten(3, (-1, side)).unflatten(2, (-1, side)).permute(0, 2, 4, 3, 5, 1)
        shapes = torch.tensor([[height // side, width // side]] * images.shape[0], device=images.device)
        mask = torch.ones(images.shape[0], patches.shape[1] * patches.shape[2], dtype=torch.int64, device=images.device)
        return PatchRows(patches.flatten(3).flatten(1, 2), mask, shapes)


HOST = Siglip2()
