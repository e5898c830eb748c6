"""Subclasses of timm's classes that merge tokens. Patching exchanges ``__class__``, so they add no attributes."""

from __future__ import annotations

from typing import Any

from timm.models._features import feature_take_indices
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from ..merging import MergingBlock, MergingSequential, PatchedTower, require_grid
from .pooling import head

__all__ = ["PATCHED", "MergingVisionTransformer"]


class PatchedBlock(MergingBlock, Block):
    pass


class MergingVisionTransformer(PatchedTower):
    """Mix-in of timm's towers. Everything that returns tokens returns the grid, so the host's own head fits them."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Any:
        if not self.global_pool:  # type: ignore[attr-defined]
            return super().forward(x, attn_mask, is_causal)  # type: ignore[misc]
        _refuse_masks(attn_mask, is_causal)
        x, merge = self._alt_patch.encode(self, x)
        return head(self, self.norm(x), merge.size)  # type: ignore[attr-defined]

    def forward_features(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Returns the normed tokens of the grid; each patch has the value of its merged token."""
        _refuse_masks(attn_mask, is_causal)
        x, merge = self._alt_patch.encode(self, x)
        return merge.restore(self.norm(x))  # type: ignore[attr-defined]

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Any:
        """Runs the host's ``forward_intermediates``; each patch has the value of its merged token."""
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt must be 'NCHW' or 'NLC', got {output_fmt!r}")
        _refuse_masks(attn_mask, is_causal)
        tower: Any = self
        grid = tower.patch_embed.dynamic_feat_size(tuple(x.shape[-2:]))
        embedded = self._alt_patch.host.embed(self, x)
        take, last = feature_take_indices(len(tower.blocks), indices)
        merge = self._alt_patch.begin(self, embedded)
        require_grid(merge, output_fmt)
        merge.take = tuple(take)
        # Bypasses the call of the blocks' container, as timm's own forward_intermediates does.
        blocks = tower.blocks[: last + 1] if stop_early else tower.blocks
        x = self._alt_patch.finish(merge.run(embedded.x, blocks, tower.grad_checkpointing), merge)
        taken = [tower.norm(y) for y in merge.intermediates] if norm else merge.intermediates
        first = tower.num_prefix_tokens
        spatial = [y[:, first:] for y in taken]
        prefix = [y[:, :first] for y in taken] if first and return_prefix_tokens else None
        if output_fmt == "NCHW":
            spatial = [y.unflatten(1, grid).permute(0, 3, 1, 2).contiguous() for y in spatial]
        if output_dict:
            output: dict[str, Any] = {"image_intermediates": spatial}
            if prefix is not None:
                output["image_intermediates_prefix"] = prefix
            if not intermediates_only:
                output["image_features"] = merge.restore(tower.norm(x))
            return output
        result = spatial if prefix is None else list(zip(spatial, prefix, strict=True))
        return result if intermediates_only else (merge.restore(tower.norm(x)), result)


class PatchedVisionTransformer(MergingVisionTransformer, VisionTransformer):
    pass


class PatchedVisionTransformerDistilled(MergingVisionTransformer, VisionTransformerDistilled):
    pass


def _refuse_masks(attn_mask: Tensor | None, is_causal: bool) -> None:
    if attn_mask is not None or is_causal:
        name = "is_causal" if attn_mask is None else "attn_mask"
        raise ValueError(f"{name}: a patched tower of timm attends to all patches; leave it out")


PATCHED: dict[type, type] = {
    VisionTransformer: PatchedVisionTransformer,
    VisionTransformerDistilled: PatchedVisionTransformerDistilled,
    nn.Sequential: MergingSequential,
    Block: PatchedBlock,
}
"""timm's class -> ours."""
