"""A CLIP image tower that merges tokens, applied to every frame, with final norm and projection on all tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from alt.data.pixels import CLIP_MEAN, CLIP_STD
from alt.hosts import Host, find_host
from alt.patch import PatchHandle, get_handle, patch_clip
from alt_kernels import source_map

__all__ = ["RegionEncoder", "Tokens"]


class Tokens(NamedTuple):
    """The tokens of a clip: per frame its embedding, then its regions.

    Row 0 is the frame's embedding, which ``encode_image`` returns for any host. Rows 1 and up are regions of patches.

    Attributes:
        x: ``[B, T, 1 + n, d]`` in the joint space.
        size: ``[B, T, 1 + n]`` float32, the number of patches behind each row (1 for row 0); None for tokens that
            were passed in without sizes.
        source: ``[B, T, 1 + N]`` int64, the row of x for every patch, in row-major order after a 0 for the frame;
            None unless requested.
        context: ``[B, N, e]``, what else a model reads of a clip's N places; None for models that read nothing else.
    """

    x: Tensor
    size: Tensor | None = None
    source: Tensor | None = None
    context: Tensor | None = None

    @property
    def frame(self) -> Tensor:
        """Returns the embedding of every frame, ``[B, T, d]``."""
        return self.x[:, :, 0]

    @property
    def regions(self) -> Tensor:
        """Returns the regions of every frame, ``[B, T, n, d]``."""
        return self.x[:, :, 1:]


class RegionEncoder(nn.Module):
    r"""The region-aware image encoder: token merging inside every block of a CLIP image tower (Eq. 1 to 3).

    .. math:: E' = E_{i-1} + \mathrm{MSA}(\mathrm{LN}(E_{i-1}); s), \quad (E'', s) = \mathrm{Merge}(E', s, r), \quad
              E_i = E'' + \mathrm{MLP}(\mathrm{LN}(E'')), \qquad X = \mathrm{LN}_{post}(E_L)\, W_{proj}

    The tower is patched in place by :func:`alt.patch_clip`; r = 0 leaves its results unchanged. CLIP applies its final
    LayerNorm and projection to the pooled token alone. Here all tokens get them, so regions and texts share a space.
    Row 0 of X equals ``clip.encode_image``.

    Args:
        visual: an unpatched image tower that a host knows and whose projection applies to single tokens.
        r: see :func:`alt.patch_clip`, like the next two.
        inflection: tilts r over depth.
        prop_attn: add log s to attention logits.
        grad_checkpointing: recompute the blocks in the backward.

    Attributes:
        statistics: mean and standard deviation per channel that the tower expects of pictures in [0, 1]. Clips are
            normalised as CLIP's images are, and changed to these.

    Raises:
        TypeError: the tower is of another kind.
        ValueError: the tower is already patched, or r does not fit it.

    Source: arXiv 2311.15619, Eq. 1 to 3; token merging: arXiv 2210.09461.
    """

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
        host = find_host(visual)
        tower = host.take_tower(visual)
        host.joint_width(tower)  # raises before anything is patched
        patch_clip(tower, r, inflection=inflection, prop_attn=prop_attn)
        self.visual = tower
        self.statistics = host.mean_std(tower)
        host.set_checkpointing(tower, grad_checkpointing)

    @property
    def tower(self) -> nn.Module:
        """Returns the image tower, whose parameters are named ``visual.*``."""
        return self.visual

    @property
    def host(self) -> Host:
        """Returns the host of the tower."""
        return self.handle.host

    def no_decay(self) -> list[nn.Parameter]:
        """Returns the tower's parameters without weight decay, besides vectors."""
        return self.host.no_decay(self.visual)

    @property
    def width(self) -> int:
        """Returns d, the number of channels of the joint space."""
        return self.host.joint_width(self.visual)

    @property
    def image_size(self) -> tuple[int, int]:
        """Returns the height and width of a frame in pixels."""
        return self.host.image_size(self.visual)

    @property
    def grid(self) -> tuple[int, int]:
        """Returns the number of patches down and across a frame."""
        return self.host.grid(self.visual)

    @property
    def num_blocks(self) -> int:
        """Returns the number of transformer blocks, the length of a list of r."""
        return len(self.host.blocks(self.visual))

    @property
    def handle(self) -> PatchHandle:
        """Returns the handle of the patch: schedule, r, inflection."""
        return get_handle(self.visual)

    @property
    def r(self) -> int | float | tuple[int, ...]:
        """Returns the tokens merged away per block. It may be set at any time."""
        return self.handle.r

    @r.setter
    def r(self, value: int | float | Sequence[int]) -> None:
        self.handle.r = value

    @property
    def num_tokens(self) -> int:
        """Returns the number of rows per frame: its embedding, and the regions after the last block."""
        return 1 + self.handle.schedule().tokens[-1] - self.host.num_protected(self.visual)

    def forward(
        self,
        clips: Tensor,
        *,
        rows: Literal["all", "class"] = "all",
        trace: bool = False,
        joint: bool = False,
        read: Callable[[Tensor], Tensor] | None = None,
    ) -> Tokens:
        """Returns the tokens of every frame.

        Args:
            clips: ``[B, T, 3, H, W]`` float, normalised as CLIP's images are, of the tower's image size.
            rows: "class" projects only the frame's embedding, for models that read nothing else; then n is 0.
            trace: also return the source map, with all rows.
            joint: put the patches of all frames into one sequence. It loses T r tokens per block, and T is 1 in the
                result. The protected tokens are those of the first frame.
            read: maps the last block's tokens ``[B T, n, w]``, before the final norm, to ``[B T, n, e]``. Their mean
                over the frames of a clip, place by place, becomes ``context``. A merged token stands at every place
                that it covers, so it counts by its size.

        Returns:
            Tokens: x ``[B, T, 1 + n, d]``, size ``[B, T, 1 + n]``, source ``[B, T, 1 + N]`` with ``trace`` (else None),
            context ``[B, N, e]`` with ``read`` (else None).

        Raises:
            TypeError: clips are not a float tensor. ValueError: they have another shape or image size.
        """
        self._check(clips)
        tower, handle = self.visual, self.handle
        host, protected = handle.host, handle.host.num_protected(tower)
        lead = (clips.shape[0], 1) if joint else tuple(clips.shape[:2])
        x, call = handle.encode(self._restate(clips.flatten(0, 1)), clips.shape[1] if joint else 1)
        context = None if read is None else call.restore(read(x))[:, protected:].unflatten(0, lead).mean(1)
        if rows == "class" and not trace:
            z = host.pool(tower, x, call.size)[:, None]
            size = z.new_ones(z.shape[:2], dtype=torch.float32)
            return Tokens(z.unflatten(0, lead), size.unflatten(0, lead), None, context)
        size = x.new_ones(x.shape[:2], dtype=torch.float32) if call.size is None else call.size
        size = torch.cat([size.new_ones(len(size), 1), size[:, protected:]], 1)
        source = None
        if trace:
            plans = [plan for plan in call.matchings if plan is not None]
            identity = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)
            patches = (source_map(plans) if plans else identity)[:, protected:] - protected + 1
            source = torch.cat([patches.new_zeros(len(patches), 1), patches], 1).unflatten(0, lead)
        x = host.project(tower, x, call.size)
        return Tokens(x.unflatten(0, lead), size.unflatten(0, lead), source, context)

    def _restate(self, images: Tensor) -> Tensor:
        """Changes images ``[B, 3, H, W]`` from CLIP's mean and standard deviation to the tower's."""
        mean, std = self.statistics
        if (tuple(mean), tuple(std)) == (CLIP_MEAN, CLIP_STD):
            return images
        numbers = zip(CLIP_MEAN, CLIP_STD, mean, std, strict=True)
        # Numbers, not tensors: these would be copied to the GPU in every call, which a graph cannot capture.
        scaled = [
            (x, old / new, (was - now) / new) for x, (was, old, now, new) in zip(images.unbind(1), numbers, strict=True)
        ]
        return torch.stack([x * factor + offset for x, factor, offset in scaled], 1)

    def _check(self, clips: Tensor) -> None:
        height, width = self.image_size
        expected = f"expected [B, T, 3, {height}, {width}]"
        if not isinstance(clips, Tensor):
            raise TypeError(f"clips: {expected} floats, got {type(clips).__name__}")
        if not clips.is_floating_point():
            got = str(clips.dtype).removeprefix("torch.")
            raise TypeError(f"clips: {expected} floats, normalised as CLIP's images are, got {got}")
        if clips.dim() != 5 or tuple(clips.shape[2:]) != (3, height, width) or 0 in clips.shape:
            raise ValueError(f"clips: {expected} with at least one frame, got {list(clips.shape)}")
