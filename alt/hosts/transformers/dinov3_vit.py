"""``DINOv3ViTModel`` and ``DINOv3ViTBackbone``: class token and registers that never merge, and rotary positions.

Queries and keys of a patch are turned by its place (y, x), in [-1, 1]; a merged token by the mean place of its patches.
Pair j of the channels of a head turns by ``2 pi y f_j``, and pair ``D / 4 + j`` by ``2 pi x f_j``.
"""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.dinov3_vit import modeling_dinov3_vit as foreign
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.utils.output_capturing import capture_outputs

from ..host import Embedded, Host, HostAttention, Projected
from ..merging import MergingBlock
from ..modules import has_hooks, require_class
from ..rotary import place_tokens
from .attention import VitStyleAttention
from .backbone import MergingBackbone
from .dinov2 import Dinov2
from .family import OWNER, patches_of
from .merging import LayersRun, MergingEncoder, MergingVisionModel

__all__ = ["HOST"]


class DINOv3ViTLayer(MergingBlock, foreign.DINOv3ViTLayer):
    pass


class DINOv3ViTEncoder(MergingEncoder, foreign.DINOv3ViTEncoder):
    pass


class DINOv3ViTModel(MergingVisionModel, foreign.DINOv3ViTModel):
    @capture_outputs  # no surrounding model records what the layers return: their tokens are merged
    def forward(self, pixel_values: Tensor, bool_masked_pos: Tensor | None = None, **kwargs: Any) -> Any:
        return self.run_merged(_embed(self, pixel_values, bool_masked_pos), kwargs)


class DINOv3ViTBackbone(MergingBackbone, foreign.DINOv3ViTBackbone):
    """Its maps leave the protected tokens out in every form, and its last stage is always normed."""

    def finish_stage(self, stage: int, x: Tensor) -> Tensor:
        return self.norm(x) if stage == len(self.stage_names) - 1 else super().finish_stage(stage, x)

    def make_output(self, run: LayersRun, tokens: list[Tensor], size: tuple[int, int]) -> Any:
        class_tokens = tuple(x[:, 0] for x in tokens) if getattr(self.config, "return_class_token", False) else None
        maps = tuple(self.to_map(x, size) for x in tokens)
        output: Any = foreign.DINOv3ViTBackboneOutput(maps, run.hidden_states, cls_tokens=class_tokens)
        if run.hidden_states is not None:  # the host's output has it only beside them
            output.last_hidden_state = run.merge.restore(self.norm(run.tokens))
        return output

    def to_map(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return super().to_map(x, size) if self.config.reshape_hidden_states else x[:, HOST.num_protected(self) :]


class Dinov3Attention(VitStyleAttention):
    """Attention that rotates q and k. The keys for matching are those before the rotation."""

    known = foreign.DINOv3ViTAttention

    def __init__(self, module: Any, rope: Any, dtype: torch.dtype) -> None:
        super().__init__(module)
        self.rope = rope
        self.dtype = dtype

    def dropout(self) -> float:
        return self.module.dropout

    def project(self, x: Tensor, positions: Tensor | None) -> Projected:
        q, k, v, scale, keys = super().project(x, None)
        cos, sin = self._table(positions)
        q, k = (_rotate(part, cos, sin).to(v.dtype) for part in (q, k))
        return Projected(q, k, v, scale, keys)

    def project_keys(self, x: Tensor, positions: Tensor | None) -> Tensor:
        keys = super().project_keys(x, None)
        if positions is None:
            return keys
        with torch.no_grad():
            return _rotate(keys, *self._table(positions))

    def call(self, x: Tensor, mask: Tensor | None, positions: Tensor | None) -> Tensor:
        # A table for all tokens: that of protected ones rotates by 0.
        return self.module(x, attention_mask=mask, position_embeddings=self._table(positions))[0]

    def _table(self, positions: Tensor | None) -> tuple[Tensor, Tensor]:
        assert positions is not None  # embed gives every token one
        return _cos_sin(positions, self.rope.inv_freq, self.dtype)


class Placed:
    """The results of one call of the rotary positions. An object, so that hooks and wrappers hand it on untouched.

    places: ``[n, 2]``, see :func:`_places`. table: what the call returned, cosines and sines ``[n, D]``.
    """

    places: Tensor
    table: tuple[Tensor, Tensor]


class DINOv3ViTRopePositionEmbedding(foreign.DINOv3ViTRopePositionEmbedding):
    """Returns the host's table, without its cache of coordinates, which would keep the fake tensors of a trace."""

    def forward(self, pixel_values: Tensor, placed: Placed | None = None) -> tuple[Tensor, Tensor]:
        places = _places(self, pixel_values)
        cos, sin = _cos_sin(places[None], self.inv_freq, pixel_values.dtype)
        table = cos[0, 0], sin[0, 0]
        if placed is not None:
            placed.places, placed.table = places, table
        return table


class Dinov3(Dinov2):
    """The host of transformers' ``DINOv3ViTModel`` and ``DINOv3ViTBackbone``."""

    name = "transformers.dinov3_vit"
    supports = "transformers' DINOv3ViTModel and DINOv3ViTBackbone"
    patched = MappingProxyType(
        {
            foreign.DINOv3ViTModel: DINOv3ViTModel,
            foreign.DINOv3ViTBackbone: DINOv3ViTBackbone,
            foreign.DINOv3ViTEncoder: DINOv3ViTEncoder,
            foreign.DINOv3ViTLayer: DINOv3ViTLayer,
            foreign.DINOv3ViTRopePositionEmbedding: DINOv3ViTRopePositionEmbedding,
        }
    )
    tower = foreign.DINOv3ViTModel
    backbone = foreign.DINOv3ViTBackbone
    encoder = foreign.DINOv3ViTEncoder
    layer = foreign.DINOv3ViTLayer
    attention = Dinov3Attention
    owners = ()
    mean, std = tuple(IMAGENET_DEFAULT_MEAN), tuple(IMAGENET_DEFAULT_STD)

    def check_tower(self, tower: Any) -> None:
        super().check_tower(tower)
        require_class(tower.rope_embeddings, (foreign.DINOv3ViTRopePositionEmbedding,), "the rotary positions", OWNER)

    def parts(self, tower: Any) -> list[tuple[str, nn.Module]]:
        return [*super().parts(tower), ("the rotary positions", tower.rope_embeddings)]

    def encoder_of(self, tower: Any) -> Any:
        return tower.model

    def read_attention(self, block: Any, tower: Any) -> HostAttention:
        return Dinov3Attention(block.attention, tower.rope_embeddings, tower.embeddings.patch_embeddings.weight.dtype)

    def rotates(self, tower: Any) -> bool:
        return True

    def num_protected(self, tower: Any) -> int:
        return 1 + tower.config.num_register_tokens

    def embed(self, tower: Any, images: Tensor) -> Embedded:
        return _embed(tower, images, None)

    def prepare_trace(self, tower: Any) -> None:
        tower.rope_embeddings.__class__ = DINOv3ViTRopePositionEmbedding

    def finish(self, tower: Any, x: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor | None]:
        normed = tower.norm(x)
        return normed, normed[:, 0, :]

    def position_embedding(self, tower: Any) -> nn.Parameter:
        return Host.position_embedding(self, tower)  # raises


def _embed(tower: Any, images: Tensor, masked: Tensor | None) -> Embedded:
    images = images.to(tower.embeddings.patch_embeddings.weight.dtype)
    x = tower.embeddings(images, bool_masked_pos=masked)
    rope = tower.rope_embeddings
    places = _called_places(rope, images) if has_hooks(rope) else _places(rope, images)
    return Embedded(x, positions=place_tokens(places, x.shape[0], HOST.num_protected(tower)))


def _called_places(rope: Any, images: Tensor) -> Tensor:
    """Returns the places of a call with hooks. They see the table of the patches, which attention does not read."""
    placed = Placed()
    if rope(images, placed=placed) is not placed.table:
        raise ValueError(
            "a forward hook on the rotary positions of a patched tower returned a table of its own, but merged tokens "
            "are rotated at the mean place of their patches; such hooks may look at the table, not replace it"
        )
    return placed.places


def _places(rope: Any, images: Tensor) -> Tensor:
    """Returns ``2 pi (y, x)`` of the patches ``[n, 2]``, rounded as the host's, with the scale that training draws."""
    config = rope.config
    down, across = patches_of(config, (images.shape[-2], images.shape[-1]))
    centres = foreign.get_patches_center_coordinates.__wrapped__  # without its cache
    places = centres(down, across, dtype=torch.float32, device=images.device)
    if rope.training:
        shift, jitter, rescale = config.pos_embed_shift, config.pos_embed_jitter, config.pos_embed_rescale
        places = foreign.augment_patches_center_coordinates(places, shift=shift, jitter=jitter, rescale=rescale)
    return (2 * math.pi * places).to(torch.promote_types(torch.float32, rope.inv_freq.dtype))


def _cos_sin(positions: Tensor, frequencies: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Returns cosines and sines ``[B, 1, N, D]`` at positions ``[B, N, 2]``, rounded as the host's."""
    angles = (positions[..., None] * frequencies).flatten(-2)[:, None]
    angles = torch.cat([angles, angles], -1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return x * cos + foreign.rotate_half(x) * sin


HOST = Dinov3()
