"""``SiglipVisionModel``, alone or inside ``SiglipModel`` and ``SiglipForImageClassification``.

SigLIP 2 of a fixed image size loads as these classes. There is no class token: a head of attention pools the patches,
and sees each merged token as often as it has patches.

In the joint space a region has the row that the head gives an image of this token alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.siglip import modeling_siglip as foreign
from transformers.models.siglip.configuration_siglip import SiglipConfig, SiglipVisionConfig
from transformers.utils.constants import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD
from transformers.utils.output_capturing import capture_outputs

from ..host import Embedded
from ..merging import MergingBlock
from ..modules import require_class
from ..packed import MultiheadAttention
from ..pooling import KeySizes, key_bias, size_weighted_mean
from .attention import ClipStyleAttention, SeparateAttention
from .family import OWNER
from .merging import MergingEncoder, MergingVisionModel
from .two_towers import TwoTowers

__all__ = ["HOST", "MergingHead", "Siglip"]


class SiglipEncoderLayer(MergingBlock, foreign.SiglipEncoderLayer):
    pass


class SiglipEncoder(MergingEncoder, foreign.SiglipEncoder):
    pass


class MergingHead:
    """Mix-in of the pooling head: the probe sees each token as often as it has patches, and padding not at all."""

    def forward(self, hidden_state: Tensor, *args: Any, sizes: KeySizes | None = None, **kwargs: Any) -> Tensor:
        if sizes is None:
            return super().forward(hidden_state, *args, **kwargs)  # type: ignore[misc]
        head: Any = self
        probe = head.probe.repeat(hidden_state.shape[0], 1, 1)
        attention = MultiheadAttention(head.attention, head.attention)
        x = attention.call_pooler(probe, hidden_state, key_bias(sizes.size, probe.dtype))
        return (x + head.mlp(head.layernorm(x)))[:, 0]


class SiglipMultiheadAttentionPoolingHead(MergingHead, foreign.SiglipMultiheadAttentionPoolingHead):
    pass


class SiglipVisionModel(MergingVisionModel, foreign.SiglipVisionModel):
    @capture_outputs  # no surrounding model records what the layers return: their tokens are merged
    def forward(self, pixel_values: Tensor, interpolate_pos_encoding: bool | None = False, **kwargs: Any) -> Any:
        x = self.embeddings(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding)
        return self.run_merged(Embedded(x), kwargs)


class SiglipAttention(ClipStyleAttention):
    known = foreign.SiglipAttention


class Siglip(TwoTowers):
    """The host of transformers' ``SiglipVisionModel``.

    Attributes:
        pooling_head: class of the head.
    """

    name = "transformers.siglip"
    supports = "transformers' SiglipVisionModel"
    patched: Mapping[type, type] = MappingProxyType(
        {
            foreign.SiglipVisionModel: SiglipVisionModel,
            foreign.SiglipEncoder: SiglipEncoder,
            foreign.SiglipEncoderLayer: SiglipEncoderLayer,
            foreign.SiglipMultiheadAttentionPoolingHead: SiglipMultiheadAttentionPoolingHead,
        }
    )
    tower = foreign.SiglipVisionModel
    encoder = foreign.SiglipEncoder
    layer = foreign.SiglipEncoderLayer
    attention: type[SeparateAttention] = SiglipAttention
    pooling_head: type[nn.Module] = foreign.SiglipMultiheadAttentionPoolingHead
    owners = ("vision_model",)
    mean, std = tuple(IMAGENET_STANDARD_MEAN), tuple(IMAGENET_STANDARD_STD)
    clip, clip_config, tower_config = foreign.SiglipModel, SiglipConfig, SiglipVisionConfig
    text_parts = ("text_model",)
    image_fields = (*TwoTowers.image_fields, "vision_use_head")
    text_fields = (*TwoTowers.text_fields, "projection_size")

    def check_tower(self, tower: Any) -> None:
        super().check_tower(tower)
        if tower.use_head:
            head = tower.head
            require_class(head, (self.pooling_head,), "the pooling head", OWNER)
            require_class(head.attention, (nn.MultiheadAttention,), "the attention of the pooling head", "torch's")

    def parts(self, tower: Any) -> list[tuple[str, nn.Module]]:
        return super().parts(tower) + ([("the pooling head", tower.head)] if tower.use_head else [])

    def num_protected(self, tower: Any) -> int:
        return 0

    def finish(self, tower: Any, x: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor | None]:
        normed = tower.post_layernorm(x)
        if not tower.use_head:
            return normed, None
        return normed, tower.head(normed, sizes=None if size is None else KeySizes(size))

    def pool(self, tower: Any, x: Tensor, size: Tensor | None) -> Tensor:
        normed, pooled = self.finish(tower, x, size)
        return size_weighted_mean(normed, size) if pooled is None else pooled

    def squeezes(self, model: Any) -> bool:
        return True

    def position_embedding(self, tower: Any) -> nn.Parameter:
        return tower.embeddings.position_embedding.weight

    # --- the joint space ---

    def joint_width(self, tower: Any) -> int:
        return tower.config.hidden_size

    def project(self, tower: Any, x: Tensor, size: Tensor | None) -> Tensor:
        regions = tower.post_layernorm(x)
        if tower.use_head:
            regions = pool_each(tower.head, regions)
        return torch.cat([self.pool(tower, x, size)[:, None], regions], 1)


def pool_each(head: Any, x: Tensor) -> Tensor:
    """Returns what the head makes of each token of ``x`` ``[B, n, C]`` alone: the softmax over one key is 1."""
    attention, width = head.attention, x.shape[-1]
    bias = attention.in_proj_bias
    value = F.linear(x, attention.in_proj_weight[2 * width :], None if bias is None else bias[2 * width :])
    y = F.linear(value, attention.out_proj.weight, attention.out_proj.bias)
    return y + head.mlp(head.layernorm(y))


HOST = Siglip()
