"""A CLIP image tower that merges tokens, applied to every frame; the final norm and projection go to all tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from alt.patch import PatchHandle, get_handle, patch_clip
from alt_kernels import source_map

__all__ = ["RegionEncoder", "Tokens"]


class Tokens(NamedTuple):
    """What the tower made of a clip.

    x: ``[B, T, n, d]`` in the joint space, index 0 the class token; size: ``[B, T, n]`` float32, how many patches each
    stands for, or None where the tokens were given without; source: ``[B, T, N]`` int64, the row of x that every
    input token (class token first, then patches in row-major order) ended in, or None where it was not asked for.
    """

    x: Tensor
    size: Tensor | None = None
    source: Tensor | None = None


class RegionEncoder(nn.Module):
    r"""The region-aware image encoder: token merging inside every block of an open_clip ViT (Eq. 1 to 3).

    .. math:: E' = E_{i-1} + \mathrm{MSA}(\mathrm{LN}(E_{i-1}); s), \quad (E'', s) = \mathrm{Merge}(E', s, r), \quad
              E_i = E'' + \mathrm{MLP}(\mathrm{LN}(E'')), \qquad X = \mathrm{LN}_{post}(E_L)\, W_{proj}

    The tower is patched in place by :func:`alt.patch_clip` (with r = 0 it computes what it did before), and its final
    LayerNorm and projection, which CLIP applies to the class token, are applied to all tokens, so that regions and
    texts share a space. Row 0 of X is what ``clip.encode_image`` returns.

    Args:
        visual: an open_clip ``VisionTransformer`` with a class token that it pools, and a projection. Not patched yet.
        r: see :func:`alt.patch_clip`, like the next two.
        inflection: tilts r over depth.
        prop_attn: add log s to attention logits.
        grad_checkpointing: recompute the blocks in the backward.

    Raises:
        TypeError: another kind of tower.
        ValueError: it is patched already, or r does not fit it.

    Source: arXiv 2311.15619, Eq. 1 to 3; token merging: arXiv 2210.09461.
    """

    visual: Any  # its attributes are open_clip's

    def __init__(
        self,
        visual: nn.Module,
        r: int | float | Sequence[int] = 8,
        *,
        inflection: float = 0.0,
        prop_attn: bool = True,
        grad_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        _check_tower(visual)
        patch_clip(visual, r, inflection=inflection, prop_attn=prop_attn)
        self.visual = visual
        self.visual.set_grad_checkpointing(grad_checkpointing)

    @property
    def width(self) -> int:
        """d, channels of the joint space."""
        return self.visual.proj.shape[1]

    @property
    def handle(self) -> PatchHandle:
        """The handle of the patch: schedule, r, inflection."""
        return get_handle(self.visual)

    @property
    def r(self) -> int | float | tuple[int, ...]:
        """Tokens merged away per block. May be set at any time: no parameter depends on it."""
        return self.handle.r

    @r.setter
    def r(self, value: int | float | Sequence[int]) -> None:
        self.handle.r = value

    @property
    def num_tokens(self) -> int:
        """n, tokens that the last block leaves of a frame, class token included."""
        return self.handle.schedule().tokens[-1]

    def forward(
        self, clips: Tensor, *, rows: Literal["all", "class"] = "all", trace: bool = False, joint: bool = False
    ) -> Tokens:
        """Tokens of every frame.

        Args:
            clips: ``[B, T, 3, H, W]`` float, normalised as CLIP's images are, of the tower's image size.
            rows: "class" projects the class token alone, for models that read no other; n is 1 then.
            trace: return the source map too, with all rows.
            joint: one class token and the patches of all frames in one sequence, whose T is 1 in what is returned;
                it loses T r tokens a block.

        Returns:
            Tokens: x ``[B, T, n, d]``, size ``[B, T, n]``, source ``[B, T, N]`` with ``trace`` (else None).

        Raises:
            TypeError: clips are no float tensor. ValueError: they have another shape or image size.
        """
        self._check(clips)
        frames = clips.flatten(0, 1)
        lead = (clips.shape[0], 1) if joint else tuple(clips.shape[:2])
        x, call = self.visual.forward_trunk(frames, clips.shape[1] if joint else 1)
        size = x.new_ones(x.shape[:2], dtype=torch.float32) if call.size is None else call.size
        source = None
        if trace:
            plans = [plan for plan in call.matchings if plan is not None]
            identity = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)
            source = (source_map(plans) if plans else identity).unflatten(0, lead)
        elif rows == "class":
            x, size = x[:, :1], size[:, :1]
        x = self.visual.ln_post(x) @ self.visual.proj
        return Tokens(x.unflatten(0, lead), size.unflatten(0, lead), source)

    def _check(self, clips: Tensor) -> None:
        height, width = self.visual.image_size
        expected = f"expected [B, T, 3, {height}, {width}]"
        if not isinstance(clips, Tensor):
            raise TypeError(f"clips: {expected} floats, got {type(clips).__name__}")
        if not clips.is_floating_point():
            got = str(clips.dtype).removeprefix("torch.")
            raise TypeError(f"clips: {expected} floats, normalised as CLIP's images are, got {got}")
        if clips.dim() != 5 or tuple(clips.shape[2:]) != (3, height, width) or 0 in clips.shape:
            raise ValueError(f"clips: {expected} with at least one frame, got {list(clips.shape)}")


def _check_tower(visual: nn.Module) -> None:
    supported = "expected an open_clip VisionTransformer that pools its class token and has a projection"
    if not isinstance(visual, VisionTransformer):
        raise TypeError(f"visual: {supported}, got {type(visual).__name__}")
    if visual.attn_pool is not None or visual.pool_type != "tok":
        pooling = "an attentional pooler" if visual.attn_pool is not None else f"pool_type={visual.pool_type!r}"
        raise TypeError(f"visual: {supported}, got one with {pooling}")
    if visual.proj is None:
        raise TypeError(f"visual: {supported}, got one without a projection")
