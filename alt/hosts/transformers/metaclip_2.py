"""``MetaClip2VisionModel``, alone or inside larger models of its family: CLIP's vision model under other names."""

from __future__ import annotations

from types import MappingProxyType

from transformers.models.metaclip_2 import modeling_metaclip_2 as foreign

from ..merging import MergingBlock
from .attention import ClipStyleAttention
from .clip import ClipTrunk, MergingClipVisionModel
from .merging import MergingEncoder

__all__ = ["HOST"]


class MetaClip2EncoderLayer(MergingBlock, foreign.MetaClip2EncoderLayer):
    pass


class MetaClip2Encoder(MergingEncoder, foreign.MetaClip2Encoder):
    pass


class MetaClip2VisionModel(MergingClipVisionModel, foreign.MetaClip2VisionModel):
    pass


class Attention(ClipStyleAttention):
    known = foreign.MetaClip2Attention


class MetaClip2(ClipTrunk):
    """The host of transformers' ``MetaClip2VisionModel``."""

    name = "transformers.metaclip_2"
    supports = "transformers' MetaClip2VisionModel"
    patched = MappingProxyType(
        {
            foreign.MetaClip2VisionModel: MetaClip2VisionModel,
            foreign.MetaClip2Encoder: MetaClip2Encoder,
            foreign.MetaClip2EncoderLayer: MetaClip2EncoderLayer,
        }
    )
    tower = foreign.MetaClip2VisionModel
    encoder = foreign.MetaClip2Encoder
    layer = foreign.MetaClip2EncoderLayer
    attention = Attention


HOST = MetaClip2()
