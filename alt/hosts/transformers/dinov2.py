"""``Dinov2Model`` and ``Dinov2WithRegistersModel``, alone or inside their classifiers, and the backbones of both.

The two families have the same parts under the same names. The registers follow the class token and never merge.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from torch import Tensor, nn
from transformers.models.dinov2 import modeling_dinov2 as foreign
from transformers.models.dinov2_with_registers import modeling_dinov2_with_registers as registers
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.utils.output_capturing import capture_outputs

from ..host import BlockParts, Embedded, HostAttention
from ..merging import MergingBlock
from .attention import SeparateAttention, VitStyleAttention
from .backbone import MergingBackbone
from .family import Family
from .merging import MergingEncoder, MergingVisionModel

__all__ = ["HOST", "WITH_REGISTERS", "Dinov2"]


class _MergingDinov2(MergingVisionModel):
    @capture_outputs  # no surrounding model records what the layers return: their tokens are merged
    def forward(
        self,
        pixel_values: Tensor | None = None,
        bool_masked_pos: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        x = self.embeddings(pixel_values, bool_masked_pos=bool_masked_pos)  # type: ignore[attr-defined]
        return self.run_merged(Embedded(x), {**kwargs, "attention_mask": attention_mask})


class Dinov2Layer(MergingBlock, foreign.Dinov2Layer):
    pass


class Dinov2Encoder(MergingEncoder, foreign.Dinov2Encoder):
    pass


class Dinov2Model(_MergingDinov2, foreign.Dinov2Model):
    pass


class Dinov2Backbone(MergingBackbone, foreign.Dinov2Backbone):
    pass


class Dinov2WithRegistersLayer(MergingBlock, registers.Dinov2WithRegistersLayer):
    pass


class Dinov2WithRegistersEncoder(MergingEncoder, registers.Dinov2WithRegistersEncoder):
    pass


class Dinov2WithRegistersModel(_MergingDinov2, registers.Dinov2WithRegistersModel):
    pass


class Dinov2WithRegistersBackbone(MergingBackbone, registers.Dinov2WithRegistersBackbone):
    pass


class Dinov2Attention(VitStyleAttention):
    known = foreign.Dinov2Attention

    def call(self, x: Tensor, mask: Tensor | None, positions: Tensor | None) -> Tensor:
        return self.module(x, attention_mask=mask)[0]


class Dinov2WithRegistersAttention(Dinov2Attention):
    known = registers.Dinov2WithRegistersAttention


class Dinov2(Family):
    """The host of transformers' ``Dinov2Model`` and ``Dinov2Backbone``."""

    name = "transformers.dinov2"
    supports = "transformers' Dinov2Model and Dinov2Backbone"
    patched = MappingProxyType(
        {
            foreign.Dinov2Model: Dinov2Model,
            foreign.Dinov2Backbone: Dinov2Backbone,
            foreign.Dinov2Encoder: Dinov2Encoder,
            foreign.Dinov2Layer: Dinov2Layer,
        }
    )
    tower = foreign.Dinov2Model
    backbone: type[nn.Module] = foreign.Dinov2Backbone
    encoder = foreign.Dinov2Encoder
    layer = foreign.Dinov2Layer
    attention: type[SeparateAttention] = Dinov2Attention
    owners: tuple[str, ...] = ("dinov2",)
    mean, std = tuple(IMAGENET_DEFAULT_MEAN), tuple(IMAGENET_DEFAULT_STD)

    def layers_of(self, encoder: Any) -> Any:
        return encoder.layer

    def block_parts(self, block: Any, tower: Any, index: int) -> BlockParts:
        def after_attention(y: Tensor) -> Tensor:
            return block.drop_path(block.layer_scale1(y))

        def feed_forward(normed: Tensor) -> Tensor:
            return block.drop_path(block.layer_scale2(block.mlp(normed)))

        attention = self.read_attention(block, tower)
        return BlockParts(block.norm1, attention, after_attention, block.norm2, feed_forward)

    def read_attention(self, block: Any, tower: Any) -> HostAttention:
        """Returns the reader of a layer's attention."""
        return self.attention(block.attention)

    def finish(self, tower: Any, x: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor | None]:
        normed = tower.layernorm(x)
        return normed, normed[:, 0, :]

    def position_embedding(self, tower: Any) -> nn.Parameter:
        return tower.embeddings.position_embeddings


class Dinov2WithRegisters(Dinov2):
    """The host of transformers' ``Dinov2WithRegistersModel`` and ``Dinov2WithRegistersBackbone``."""

    name = "transformers.dinov2_with_registers"
    supports = "transformers' Dinov2WithRegistersModel and Dinov2WithRegistersBackbone"
    patched = MappingProxyType(
        {
            registers.Dinov2WithRegistersModel: Dinov2WithRegistersModel,
            registers.Dinov2WithRegistersBackbone: Dinov2WithRegistersBackbone,
            registers.Dinov2WithRegistersEncoder: Dinov2WithRegistersEncoder,
            registers.Dinov2WithRegistersLayer: Dinov2WithRegistersLayer,
        }
    )
    tower = registers.Dinov2WithRegistersModel
    backbone = registers.Dinov2WithRegistersBackbone
    encoder = registers.Dinov2WithRegistersEncoder
    layer = registers.Dinov2WithRegistersLayer
    attention = Dinov2WithRegistersAttention
    owners = ("dinov2_with_registers",)

    def num_protected(self, tower: Any) -> int:
        return 1 + tower.config.num_register_tokens


HOST = Dinov2()
WITH_REGISTERS = Dinov2WithRegisters()
