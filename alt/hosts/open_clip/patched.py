"""Subclasses of open_clip's classes that merge tokens. Patching exchanges ``__class__``, so they add no attributes."""

from __future__ import annotations

from typing import Any

from open_clip.transformer import (
    AttentionalPooler,
    CustomResidualAttentionBlock,
    CustomTransformer,
    ResidualAttentionBlock,
    Transformer,
    VisionTransformer,
)
from open_clip.utils import feature_take_indices
from torch import Tensor, nn

from ..host import Embedded
from ..merging import MergingBlock, PatchedTower, TrunkMerge, require_grid
from ..pooling import KeySizes
from .pooling import attentional_pool, pool

__all__ = ["PATCHED"]


class PatchedResidualAttentionBlock(MergingBlock, ResidualAttentionBlock):
    pass


class PatchedCustomResidualAttentionBlock(MergingBlock, CustomResidualAttentionBlock):
    pass


class _MergingTrunk:
    """Mix-in of open_clip's two trunk classes, which the tower calls and which call the blocks."""

    resblocks: nn.ModuleList
    grad_checkpointing: bool

    def forward(self, x: Tensor, *args: Any, merge: TrunkMerge | None = None, **kwargs: Any) -> Tensor:
        if merge is None:
            return super().forward(x, *args, **kwargs)  # type: ignore[misc]
        return merge.run(x, self.resblocks, self.grad_checkpointing)


class PatchedTransformer(_MergingTrunk, Transformer):
    pass


class PatchedCustomTransformer(_MergingTrunk, CustomTransformer):
    pass


class PatchedAttentionalPooler(AttentionalPooler):
    def forward(self, x: Tensor, *, sizes: KeySizes | None = None) -> Tensor:
        return super().forward(x) if sizes is None else attentional_pool(self, x, sizes)


class PatchedVisionTransformer(PatchedTower, VisionTransformer):
    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x, merge = self._alt_patch.encode(self, x)
        pooled, tokens = pool(self, x, merge.size)
        if self.proj is not None:
            pooled = pooled @ self.proj
        return (pooled, tokens) if self.output_tokens else pooled

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        stop_early: bool = False,
        normalize_intermediates: bool = False,
        intermediates_only: bool = False,
        output_fmt: str = "NCHW",
        output_extra_tokens: bool = False,
    ) -> dict[str, Tensor | list[Tensor]]:
        """Runs the host's ``forward_intermediates``; each patch has the value of its merged token."""
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt must be 'NCHW' or 'NLC', got {output_fmt!r}")
        grid = tuple(pixels // patch for pixels, patch in zip(x.shape[-2:], self.patch_size, strict=True))
        x = self._embeds(x)
        num_tokens = x.shape[1]
        if num_tokens != 1 + grid[0] * grid[1]:
            raise ValueError(
                f"forward_intermediates needs a token for each of the {grid[0]} x {grid[1]} patches, got "
                f"{num_tokens - 1}: patch dropout is active; call model.eval() first"
            )
        trunk = self.transformer
        take, last = feature_take_indices(len(trunk.resblocks), indices)
        merge = self._alt_patch.begin(self, Embedded(x))
        require_grid(merge, output_fmt)
        merge.take = tuple(take)
        # Bypasses the trunk's call: open_clip's own forward_intermediates does not fire the trunk's hooks either.
        blocks = trunk.resblocks[: last + 1] if stop_early else trunk.resblocks
        x = self._alt_patch.finish(merge.run(x, blocks, trunk.grad_checkpointing), merge)
        taken = [self.ln_post(y) for y in merge.intermediates] if normalize_intermediates else merge.intermediates
        spatial = [y[:, 1:] for y in taken]
        if output_fmt == "NCHW":
            spatial = [y.unflatten(1, grid).permute(0, 3, 1, 2).contiguous() for y in spatial]
        output: dict[str, Tensor | list[Tensor]] = {"image_intermediates": spatial}
        if output_extra_tokens:
            output["image_intermediates_prefix"] = [y[:, :1] for y in taken]
        if not intermediates_only:
            pooled, _ = pool(self, x, merge.size)
            output["image_features"] = pooled if self.proj is None else pooled @ self.proj
        return output


PATCHED: dict[type, type] = {
    VisionTransformer: PatchedVisionTransformer,
    Transformer: PatchedTransformer,
    CustomTransformer: PatchedCustomTransformer,
    ResidualAttentionBlock: PatchedResidualAttentionBlock,
    CustomResidualAttentionBlock: PatchedCustomResidualAttentionBlock,
    AttentionalPooler: PatchedAttentionalPooler,
}
"""open_clip's class -> ours."""
