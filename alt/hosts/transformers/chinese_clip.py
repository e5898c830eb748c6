"""``ChineseCLIPVisionModel``, alone or inside ``ChineseCLIPModel``: CLIP's vision model under other names."""

from __future__ import annotations

from types import MappingProxyType

from transformers.models.chinese_clip import modeling_chinese_clip as foreign

from ..merging import MergingBlock
from .attention import ClipStyleAttention
from .clip import ClipTrunk, MergingClipVisionModel
from .merging import MergingEncoder

__all__ = ["HOST"]


class ChineseCLIPVisionLayer(MergingBlock, foreign.ChineseCLIPVisionLayer):
    pass


class ChineseCLIPVisionEncoder(MergingEncoder, foreign.ChineseCLIPVisionEncoder):
    pass


class ChineseCLIPVisionModel(MergingClipVisionModel, foreign.ChineseCLIPVisionModel):
    pass


class Attention(ClipStyleAttention):
    known = foreign.ChineseCLIPVisionAttention


class ChineseClip(ClipTrunk):
    """The host of transformers' ``ChineseCLIPVisionModel``."""

    name = "transformers.chinese_clip"
    supports = "transformers' ChineseCLIPVisionModel"
    patched = MappingProxyType(
        {
            foreign.ChineseCLIPVisionModel: ChineseCLIPVisionModel,
            foreign.ChineseCLIPVisionEncoder: ChineseCLIPVisionEncoder,
            foreign.ChineseCLIPVisionLayer: ChineseCLIPVisionLayer,
        }
    )
    tower = foreign.ChineseCLIPVisionModel
    encoder = foreign.ChineseCLIPVisionEncoder
    layer = foreign.ChineseCLIPVisionLayer
    attention = Attention


HOST = ChineseClip()
