"""torchvision's ``VisionTransformer``: ``vit_b_16`` and the others, with either stem and any head."""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.vision_transformer import Encoder, EncoderBlock, VisionTransformer

from .host import BlockParts, Embedded, Host
from .merging import MergingBlock, MergingSequential, PatchedTower, TrunkMerge
from .modules import require_class, require_unsharded
from .packed import read_multihead

__all__ = ["HOST"]

_OWNER = "torchvision's"
_BLOCK = re.compile(r"encoder\.layers\.\w+(?:\.(?P<part>\w+))?")
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as in the transforms of its weights


class PatchedEncoderBlock(MergingBlock, EncoderBlock):
    pass


class PatchedEncoder(Encoder):
    def forward(self, input: Tensor, *, merge: TrunkMerge | None = None) -> Tensor:
        if merge is None:
            return super().forward(input)
        return self.ln(self.layers(_add_positions(self, input), merge=merge))


class PatchedVisionTransformer(PatchedTower, VisionTransformer):
    def forward(self, x: Tensor) -> Tensor:
        """Calls the encoder as the host does, before positions are added and with the last norm, so its hooks fit."""
        x = _tokens(self, x)
        merge = self._alt_patch.begin(self, Embedded(x))
        x = self._alt_patch.finish(self.encoder(x, merge=merge), merge)
        return self.heads(x[:, 0])


class Torchvision(Host):
    """The host of torchvision's ``VisionTransformer``."""

    name = "torchvision"
    supports = "torchvision's VisionTransformer"
    patched = MappingProxyType(
        {
            VisionTransformer: PatchedVisionTransformer,
            Encoder: PatchedEncoder,
            nn.Sequential: MergingSequential,
            EncoderBlock: PatchedEncoderBlock,
        }
    )

    # --- where things are ---

    def find_tower(self, model: nn.Module) -> nn.Module | None:
        return model if isinstance(model, VisionTransformer) else None

    def check_tower(self, tower: Any) -> None:
        require_class(tower, (VisionTransformer,), "the image tower", _OWNER)
        require_class(tower.encoder, (Encoder,), "the tower's encoder", _OWNER)
        require_class(tower.encoder.layers, (nn.Sequential,), "the encoder's layers", "torch's")
        for i, block in enumerate(self.blocks(tower)):
            require_class(block, (EncoderBlock,), f"block {i}", _OWNER)
            read_multihead(block.self_attention, f"the attention of block {i}")
        require_unsharded(tower)

    def parts(self, tower: Any) -> list[tuple[str, nn.Module]]:
        encoder = tower.encoder
        parts = [("the image tower", tower), ("the tower's encoder", encoder), ("the encoder's layers", encoder.layers)]
        return parts + [(f"block {i}", block) for i, block in enumerate(self.blocks(tower))]

    def blocks(self, tower: Any) -> Sequence[nn.Module]:
        return tower.encoder.layers

    def block_parts(self, block: Any, tower: Any, index: int) -> BlockParts:
        attention = read_multihead(block.self_attention, f"the attention of block {index}")
        return BlockParts(block.ln_1, attention, block.dropout, block.ln_2, block.mlp)

    def component(self, path: str) -> str:
        block = _BLOCK.match(path)
        if block is not None:
            return {"mlp": "mlp", "self_attention": "attention"}.get(block["part"], "block")
        return "patch_embedding" if path.startswith("conv_proj") else "pooling"

    # --- sizes ---

    def image_size(self, tower: Any) -> tuple[int, int]:
        return tower.image_size, tower.image_size

    def grid(self, tower: Any) -> tuple[int, int]:
        side = tower.image_size // tower.patch_size
        return side, side

    def num_protected(self, tower: Any) -> int:
        return 1

    def width(self, tower: Any) -> int:
        return tower.hidden_dim

    # --- the forward ---

    def embed(self, tower: Any, images: Tensor) -> Embedded:
        return Embedded(_add_positions(tower.encoder, _tokens(tower, images)))

    def run_blocks(self, tower: Any, x: Tensor, merge: TrunkMerge) -> Tensor:
        return tower.encoder.layers(x, merge=merge)

    def pool(self, tower: Any, x: Tensor, size: Tensor | None) -> Tensor:
        return tower.heads(tower.encoder.ln(x[:, 0]))

    def project(self, tower: Any, x: Tensor, size: Tensor | None) -> Tensor:
        return tower.heads(tower.encoder.ln(x))

    def joint_width(self, tower: Any) -> int:
        last = tower.heads[-1] if isinstance(tower.heads, nn.Sequential) and len(tower.heads) else tower.heads
        if isinstance(last, nn.Linear):
            return last.out_features
        raise TypeError(
            "image tower: expected a torchvision VisionTransformer whose head ends in a torch.nn.Linear, got one that "
            f"ends in {type(last).__name__}"
        )

    # --- weights and pictures ---

    def position_embedding(self, tower: Any) -> nn.Parameter:
        return tower.encoder.pos_embedding

    def no_decay(self, tower: Any) -> list[nn.Parameter]:
        return [tower.encoder.pos_embedding, tower.class_token]

    def mean_std(self, tower: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return _MEAN, _STD


def _tokens(tower: Any, images: Tensor) -> Tensor:
    """Returns the class token and the patches ``[B, N, C]``, without positions."""
    patches = tower._process_input(images)
    return torch.cat([tower.class_token.expand(patches.shape[0], -1, -1), patches], 1)


def _add_positions(encoder: Any, x: Tensor) -> Tensor:
    return encoder.dropout(x + encoder.pos_embedding)


HOST = Torchvision()
