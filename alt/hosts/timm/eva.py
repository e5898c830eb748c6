"""timm's ``Eva``: EVA and EVA-02, DINOv3, PE-Core and RoPE-ViT, alone or as the trunk of open_clip's ``TimmModel``.

Most of them rotate queries and keys by the place of a patch. A merged token is rotated by the mean place of its
patches.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import torch
from timm.layers import AttentionPoolLatent, PatchDropoutWithIndices, resample_abs_pos_embed
from timm.models.eva import Eva, EvaBlock, EvaBlockPostNorm
from torch import Tensor, nn

from ..host import BlockParts, Embedded
from ..merging import MergingBlock, TrunkMerge
from ..modules import require_class, require_unsharded
from ..rotary import place_tokens
from . import OWNER, Timm
from .attention import RotaryAttention
from .patched import MergingVisionTransformer
from .rotary import ROPES, coordinates

__all__ = ["HOST"]


class PatchedEvaBlock(MergingBlock, EvaBlock):
    pass


class PatchedEvaBlockPostNorm(MergingBlock, EvaBlockPostNorm):
    pass


class PatchedEva(MergingVisionTransformer, Eva):
    def forward_intermediates(  # type: ignore[override]  # Eva has no output_dict
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Any:
        options = (indices, return_prefix_tokens, norm, stop_early, output_fmt, intermediates_only)
        return super().forward_intermediates(x, *options, attn_mask=attn_mask, is_causal=is_causal)


class EvaHost(Timm):
    """The host of timm's ``Eva``."""

    name = "timm.eva"
    supports = "timm's Eva"
    patched = MappingProxyType({Eva: PatchedEva, EvaBlock: PatchedEvaBlock, EvaBlockPostNorm: PatchedEvaBlockPostNorm})
    tower = Eva

    # --- where things are ---

    def check_tower(self, tower: Any) -> None:
        require_class(tower, (Eva,), "the image tower", OWNER)
        for i, block in enumerate(tower.blocks):
            require_class(block, (EvaBlock, EvaBlockPostNorm), f"block {i}", OWNER)
            require_class(block.attn, RotaryAttention.known, f"the attention of block {i}", OWNER)
        if tower.rope is not None:
            require_class(tower.rope, ROPES, "the rotary positions", OWNER)
        if tower.patch_drop is not None:
            require_class(tower.patch_drop, (PatchDropoutWithIndices,), "the patch dropout", OWNER)
        self.check_pooling(tower, (AttentionPoolLatent,))
        require_unsharded(tower)

    def parts(self, tower: Any) -> list[tuple[str, nn.Module]]:
        return [("the image tower", tower), *((f"block {i}", block) for i, block in enumerate(tower.blocks))]

    def block_parts(self, block: Any, tower: Any, index: int) -> BlockParts:
        attention = RotaryAttention(block.attn, tower.rope, index)
        if isinstance(block, EvaBlockPostNorm):  # its norms follow attention and MLP
            return BlockParts(
                nn.Identity(),
                attention,
                lambda y: block.drop_path1(block.norm1(y)),
                nn.Identity(),
                lambda x: block.drop_path2(block.norm2(block.mlp(x))),
            )

        def scale(gamma: Tensor | None, y: Tensor) -> Tensor:
            return y if gamma is None else gamma * y

        return BlockParts(
            block.norm1,
            attention,
            lambda y: block.drop_path1(scale(block.gamma_1, y)),
            block.norm2,
            lambda normed: block.drop_path2(scale(block.gamma_2, block.mlp(normed))),
        )

    def rotates(self, tower: Any) -> bool:
        return tower.rope is not None

    # --- the forward ---

    def embed(self, tower: Any, images: Tensor) -> Embedded:
        x = tower.patch_embed(images)
        learned, grid = tower.pos_embed, tower.patch_embed.grid_size
        if tower.dynamic_img_size:
            old, grid = grid, tuple(x.shape[1:3])
            x = x.flatten(1, 2)
            if learned is not None:
                prefix = 0 if tower.no_embed_class else tower.num_prefix_tokens
                learned = resample_abs_pos_embed(learned, new_size=grid, old_size=old, num_prefix_tokens=prefix)
        elif tower.rope is not None:
            grid = getattr(tower.rope, "feat_shape", None) or grid
        # Before any dropout, as in timm: training may draw a shift and scale of the coordinates.
        places = None if tower.rope is None else coordinates(tower.rope, grid)
        batch = x.shape[0]  # len(x) would fix the batch of a trace
        special = [token.expand(batch, -1, -1) for token in (tower.cls_token, tower.reg_token) if token is not None]
        if learned is not None and tower.no_embed_class:
            x = x + learned
        x = torch.cat([*special, x], 1)
        if learned is not None and not tower.no_embed_class:
            x = x + learned
        x = tower.pos_drop(x)
        if tower.patch_drop is not None:
            x, kept = tower.patch_drop(x)
            if places is not None and kept is not None:
                places = places[kept]
        positions = None if places is None else place_tokens(places, batch, tower.num_prefix_tokens)
        return Embedded(tower.norm_pre(x), positions=positions)

    def run_blocks(self, tower: Any, x: Tensor, merge: TrunkMerge) -> Tensor:
        return merge.run(x, tower.blocks, tower.grad_checkpointing)


HOST = EvaHost()
