"""``SiglipVisionModel``, alone or inside ``SiglipModel`` and ``SiglipForImageClassification``.

SigLIP 2 of a fixed image size loads as these classes. There is no class token: a head of attention pools the patches,
and sees each merged token as often as it has patches.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.siglip import modeling_siglip as foreign
from transformers.utils.constants import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD
from transformers.utils.output_capturing import capture_outputs

from ..host import Embedded
from ..merging import MergingBlock
from ..modules import require_class
from ..packed import MultiheadAttention
from ..pooling import KeySizes, key_bias, size_weighted_mean
from .attention import ClipStyleAttention, SeparateAttention
from .family import OWNER, ClipStyleFamily
from .merging import MergingEncoder, MergingVisionModel

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


class Siglip(ClipStyleFamily):
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

    def position_embedding(self, tower: Any) -> torch.nn.Parameter:
        return tower.embeddings.position_embedding.weight


HOST = Siglip()
