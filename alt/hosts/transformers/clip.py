"""``CLIPVisionModel``, alone or inside ``CLIPModel``, ``CLIPVisionModelWithProjection`` and the classifier.

These and every other model that holds the tower read it through ``last_hidden_state``, ``hidden_states`` and
``pooler_output``, so they run unchanged.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from transformers.models.clip import modeling_clip as foreign
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.utils.output_capturing import capture_outputs

from ..host import Embedded
from ..merging import MergingBlock
from .attention import ClipStyleAttention
from .family import ClipStyleFamily
from .merging import MergingEncoder, MergingVisionModel

__all__ = ["HOST"]


class CLIPEncoderLayer(MergingBlock, foreign.CLIPEncoderLayer):
    pass


class CLIPEncoder(MergingEncoder, foreign.CLIPEncoder):
    pass


class CLIPVisionModel(MergingVisionModel, foreign.CLIPVisionModel):
    @capture_outputs  # no surrounding model records what the layers return: their tokens are merged
    def forward(
        self, pixel_values: Tensor | None = None, interpolate_pos_encoding: bool | None = False, **kwargs: Any
    ) -> Any:
        x = self.embeddings(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding)
        return self.run_merged(Embedded(self.pre_layrnorm(x)), kwargs)


class ClipAttention(ClipStyleAttention):
    known = foreign.CLIPAttention


class Clip(ClipStyleFamily):
    """The host of transformers' ``CLIPVisionModel``."""

    name = "transformers.clip"
    supports = "transformers' CLIPVisionModel"
    patched = MappingProxyType(
        {
            foreign.CLIPVisionModel: CLIPVisionModel,
            foreign.CLIPEncoder: CLIPEncoder,
            foreign.CLIPEncoderLayer: CLIPEncoderLayer,
        }
    )
    tower = foreign.CLIPVisionModel
    encoder = foreign.CLIPEncoder
    layer = foreign.CLIPEncoderLayer
    attention = ClipAttention
    owners = ("vision_model",)
    mean, std = tuple(OPENAI_CLIP_MEAN), tuple(OPENAI_CLIP_STD)

    def embed(self, tower: Any, images: Tensor) -> Embedded:
        return Embedded(tower.pre_layrnorm(tower.embeddings(images)))

    def finish(self, tower: Any, x: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return x, tower.post_layernorm(x[:, 0, :])

    def position_embedding(self, tower: Any) -> torch.nn.Parameter:
        return tower.embeddings.position_embedding.weight


HOST = Clip()
