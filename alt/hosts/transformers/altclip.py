"""``AltCLIPVisionModel``, alone or inside ``AltCLIPModel``: CLIP's vision model under other names."""

from __future__ import annotations

from types import MappingProxyType

from transformers.models.altclip import modeling_altclip as foreign

from ..merging import MergingBlock
from .attention import ClipStyleAttention
from .clip import ClipTrunk, MergingClipVisionModel
from .merging import MergingEncoder

__all__ = ["HOST"]


class AltCLIPEncoderLayer(MergingBlock, foreign.AltCLIPEncoderLayer):
    pass


class AltCLIPEncoder(MergingEncoder, foreign.AltCLIPEncoder):
    pass


class AltCLIPVisionModel(MergingClipVisionModel, foreign.AltCLIPVisionModel):
    pass


class Attention(ClipStyleAttention):
    known = foreign.AltCLIPAttention


class AltClip(ClipTrunk):
    """The host of transformers' ``AltCLIPVisionModel``."""

    name = "transformers.altclip"
    supports = "transformers' AltCLIPVisionModel"
    patched = MappingProxyType(
        {
            foreign.AltCLIPVisionModel: AltCLIPVisionModel,
            foreign.AltCLIPEncoder: AltCLIPEncoder,
            foreign.AltCLIPEncoderLayer: AltCLIPEncoderLayer,
        }
    )
    tower = foreign.AltCLIPVisionModel
    encoder = foreign.AltCLIPEncoder
    layer = foreign.AltCLIPEncoderLayer
    attention = Attention


HOST = AltClip()
