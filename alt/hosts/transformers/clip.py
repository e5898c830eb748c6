"""``CLIPVisionModel``, alone or inside ``CLIPModel``, ``CLIPVisionModelWithProjection`` and the classifier.

These and every other model that holds the tower read it through ``last_hidden_state``, ``hidden_states`` and
``pooler_output``, so they run unchanged.

The projection to the space of the texts lies outside the vision model. :meth:`Clip.take_tower` puts it in.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn
from transformers.models.clip import modeling_clip as foreign
from transformers.models.clip.configuration_clip import CLIPConfig, CLIPVisionConfig
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.utils.output_capturing import capture_outputs

from ..host import Embedded
from ..merging import MergingBlock
from .attention import ClipStyleAttention
from .family import ClipStyleFamily
from .merging import MergingEncoder, MergingVisionModel
from .two_towers import TwoTowers

__all__ = ["HOST", "ClipTrunk", "MergingClipVisionModel"]


class CLIPEncoderLayer(MergingBlock, foreign.CLIPEncoderLayer):
    pass


class CLIPEncoder(MergingEncoder, foreign.CLIPEncoder):
    pass


class MergingClipVisionModel(MergingVisionModel):
    """Mix-in of the vision models with the parts of CLIP's."""

    @capture_outputs  # no surrounding model records what the layers return: their tokens are merged
    def forward(
        self, pixel_values: Tensor | None = None, interpolate_pos_encoding: bool | None = False, **kwargs: Any
    ) -> Any:
        tower: Any = self
        x = tower.embeddings(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding)
        return self.run_merged(Embedded(tower.pre_layrnorm(x)), kwargs)


class CLIPVisionModel(MergingClipVisionModel, foreign.CLIPVisionModel):
    pass


class ClipAttention(ClipStyleAttention):
    known = foreign.CLIPAttention


class ClipTrunk(ClipStyleFamily):
    """Base of the hosts whose vision models have the parts of CLIP's: class token, norms around the layers."""

    owners = ("vision_model",)
    mean, std = tuple(OPENAI_CLIP_MEAN), tuple(OPENAI_CLIP_STD)

    def embed(self, tower: Any, images: Tensor) -> Embedded:
        return Embedded(tower.pre_layrnorm(tower.embeddings(images)))

    def finish(self, tower: Any, x: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return x, tower.post_layernorm(x[:, 0, :])

    def position_embedding(self, tower: Any) -> nn.Parameter:
        return tower.embeddings.position_embedding.weight


class Clip(ClipTrunk, TwoTowers):
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
    clip, clip_config, tower_config = foreign.CLIPModel, CLIPConfig, CLIPVisionConfig
    text_parts = ("text_model", "text_projection")
    text_fields = ("vocab_size", "max_position_embeddings", "eos_token_id")

    # --- the joint space ---

    def take_tower(self, model: Any) -> nn.Module:
        tower: Any = super().take_tower(model)
        projection = getattr(model, "visual_projection", None)
        if model is not tower and isinstance(projection, nn.Linear):
            tower.visual_projection = projection
        return tower

    def pool(self, tower: Any, x: Tensor, size: Tensor | None) -> Tensor:
        pooled = tower.post_layernorm(x[:, 0])
        projection = getattr(tower, "visual_projection", None)
        return pooled if projection is None else projection(pooled)

    def project(self, tower: Any, x: Tensor, size: Tensor | None) -> Tensor:
        if not hasattr(tower, "visual_projection"):
            return super().project(tower, x, size)
        return tower.visual_projection(tower.post_layernorm(x))  # row 0 is the class token

    def joint_width(self, tower: Any) -> int:
        projection = getattr(tower, "visual_projection", None)
        return super().joint_width(tower) if projection is None else projection.out_features

    def describe(self, tower: Any) -> dict[str, Any]:
        return {**super().describe(tower), "output_dim": self.joint_width(tower)}

    def build(self, sizes: dict[str, Any], *, quick_gelu: bool) -> nn.Module:
        tower: Any = super().build(sizes, quick_gelu=quick_gelu)
        tower.visual_projection = nn.Linear(sizes["hidden_size"], sizes["output_dim"], bias=False)
        return tower

    def describe_text(self, model: Any) -> dict[str, Any]:
        sizes = super().describe_text(model)
        return {**sizes, "output_dim": model.text_projection.out_features}

    def joint_sizes(self, sizes: Mapping[str, Any]) -> dict[str, Any]:
        return {"projection_dim": sizes["output_dim"]}


HOST = Clip()
