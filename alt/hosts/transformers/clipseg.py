"""``CLIPSegVisionModel``, alone or inside ``CLIPSegModel``: CLIP's vision model under other names."""

from __future__ import annotations

from types import MappingProxyType

from transformers.models.clipseg import modeling_clipseg as foreign

from ..merging import MergingBlock
from .attention import ClipStyleAttention
from .clip import ClipTrunk, MergingClipVisionModel
from .merging import MergingEncoder

__all__ = ["HOST"]


class CLIPSegEncoderLayer(MergingBlock, foreign.CLIPSegEncoderLayer):
    pass


class CLIPSegEncoder(MergingEncoder, foreign.CLIPSegEncoder):
    pass


class CLIPSegVisionModel(MergingClipVisionModel, foreign.CLIPSegVisionModel):
    pass


class Attention(ClipStyleAttention):
    known = foreign.CLIPSegAttention


class ClipSeg(ClipTrunk):
    """The host of transformers' ``CLIPSegVisionModel``."""

    name = "transformers.clipseg"
    supports = "transformers' CLIPSegVisionModel"
    patched = MappingProxyType(
        {
            foreign.CLIPSegVisionModel: CLIPSegVisionModel,
            foreign.CLIPSegEncoder: CLIPSegEncoder,
            foreign.CLIPSegEncoderLayer: CLIPSegEncoderLayer,
        }
    )
    tower = foreign.CLIPSegVisionModel
    encoder = foreign.CLIPSegEncoder
    layer = foreign.CLIPSegEncoderLayer
    attention = Attention


HOST = ClipSeg()
