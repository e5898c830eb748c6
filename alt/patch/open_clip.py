"""open_clip's vision towers, patched: subclasses of its own classes, put on and taken off by ``__class__``.

Imported only when an open_clip model is patched or unpickled. Covers both generations: blocks of 3.x with
``nn.MultiheadAttention`` and the later ones with open_clip's own ``Attention``. A patched class adds one
keyword argument to ``forward``; without it, it is its host.
"""

from __future__ import annotations

from typing import Any

import torch
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

from alt_kernels import Matching

from .attention import attention_kind, qualified_name
from .pooling import KeySizes, attentional_pool, pool
from .settings import PatchSettings, Trace
from .step import BlockCall, merge_step, restore_grid, run_block

FAMILY = "open_clip.transformer.VisionTransformer"


class TrunkCall:
    """What the tower hands to its trunk besides x, and gets back besides x. An object as BlockCall is one."""

    def __init__(self, removed: tuple[int, ...], prop_attn: bool) -> None:
        self.removed = removed
        self.prop_attn = prop_attn
        self.size: Tensor | None = None
        self.matchings: list[Matching | None] = []


class PatchedResidualAttentionBlock(ResidualAttentionBlock):
    def forward(self, q_x: Tensor, *args: Any, merge: BlockCall | None = None, **kwargs: Any) -> Tensor:
        return super().forward(q_x, *args, **kwargs) if merge is None else merge_step(self, q_x, merge)


class PatchedCustomResidualAttentionBlock(CustomResidualAttentionBlock):
    def forward(self, x: Tensor, *args: Any, merge: BlockCall | None = None, **kwargs: Any) -> Tensor:
        return super().forward(x, *args, **kwargs) if merge is None else merge_step(self, x, merge)


class _MergingTrunk:
    """The loop over the blocks, for both of open_clip's trunk classes."""

    resblocks: nn.ModuleList
    grad_checkpointing: bool

    def forward(self, x: Tensor, *args: Any, merge: TrunkCall | None = None, **kwargs: Any) -> Tensor:
        if merge is None:
            return super().forward(x, *args, **kwargs)  # type: ignore[misc]
        return self._run(x, merge, len(self.resblocks), ())[0]

    def merge_intermediates(
        self, x: Tensor, merge: TrunkCall, indices: int | list[int] | None, stop_early: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """``forward_intermediates`` of the host, every intermediate copied back to the tokens of the input."""
        take, last = feature_take_indices(len(self.resblocks), indices)
        return self._run(x, merge, last + 1 if stop_early else len(self.resblocks), tuple(take))

    def _run(self, x: Tensor, call: TrunkCall, num_blocks: int, take: tuple[int, ...]) -> tuple[Tensor, list[Tensor]]:
        intermediates = []
        for i, block in enumerate(self.resblocks[:num_blocks]):
            x, call.size, matching = run_block(
                block,
                x,
                call.size,
                call.removed[i],
                prop_attn=call.prop_attn,
                checkpointing=self.grad_checkpointing,
            )
            call.matchings.append(matching)
            if i in take:
                intermediates.append(restore_grid(x, call.matchings))
        return x, intermediates


class PatchedTransformer(_MergingTrunk, Transformer):
    pass


class PatchedCustomTransformer(_MergingTrunk, CustomTransformer):
    pass


class PatchedAttentionalPooler(AttentionalPooler):
    def forward(self, x: Tensor, *, sizes: KeySizes | None = None) -> Tensor:
        return super().forward(x) if sizes is None else attentional_pool(self, x, sizes)


class PatchedVisionTransformer(VisionTransformer):
    _alt_patch: PatchSettings

    def forward_trunk(self, x: Tensor, frames: int = 1) -> tuple[Tensor, TrunkCall]:
        """The merged tokens ``[B, n, width]`` of the last block, before ln_post, with their sizes and plans.

        With ``frames`` > 1 that many images in a row are one sequence: one class token and the patches of all, each
        with the position it has in its own image.
        """
        x = self._embeds(x)
        if frames > 1:
            x = x.unflatten(0, (-1, frames))
            x = torch.cat([x[:, 0, :1], x[:, :, 1:].flatten(1, 2)], 1)
        call = self._begin(x, frames)
        num_tokens = x.shape[1]
        return self._finish(self.transformer(x, merge=call), call, num_tokens), call

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x, call = self.forward_trunk(x)
        pooled, tokens = pool(self, x, call.size)
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
        """The host's ``forward_intermediates``: every patch of an intermediate has its merged token's value."""
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
        call = self._begin(x)
        x, taken = self.transformer.merge_intermediates(x, call, indices, stop_early)
        x = self._finish(x, call, num_tokens)
        if normalize_intermediates:
            taken = [self.ln_post(y) for y in taken]
        spatial = [y[:, 1:] for y in taken]
        if output_fmt == "NCHW":
            spatial = [y.unflatten(1, grid).permute(0, 3, 1, 2).contiguous() for y in spatial]
        output: dict[str, Tensor | list[Tensor]] = {"image_intermediates": spatial}
        if output_extra_tokens:
            output["image_intermediates_prefix"] = [y[:, :1] for y in taken]
        if not intermediates_only:
            pooled, _ = pool(self, x, call.size)
            output["image_features"] = pooled if self.proj is None else pooled @ self.proj
        return output

    def _begin(self, x: Tensor, frames: int = 1) -> TrunkCall:
        patch = self._alt_patch
        schedule = patch.schedule(len(self.transformer.resblocks), x.shape[1], frames)
        return TrunkCall(schedule.removed, patch.prop_attn)

    def _finish(self, x: Tensor, call: TrunkCall, num_tokens: int) -> Tensor:
        """Checks what came out of the trunk's own call, hooks included, and keeps the trace if asked for."""
        left = num_tokens - sum(call.removed[: len(call.matchings)])
        if x.dim() != 3 or x.shape[1] != left:
            raise ValueError(
                f"a forward hook on the patched transformer returned a tensor of shape {tuple(x.shape)} where "
                f"{left} tokens were expected; hooks may change the tokens, not their number"
            )
        if self._alt_patch.trace_source:
            self._alt_patch.trace = Trace(x.shape[0], num_tokens, x.device, tuple(call.matchings), call.size)
        return x


_PATCHED: dict[type, type] = {
    VisionTransformer: PatchedVisionTransformer,
    Transformer: PatchedTransformer,
    CustomTransformer: PatchedCustomTransformer,
    ResidualAttentionBlock: PatchedResidualAttentionBlock,
    CustomResidualAttentionBlock: PatchedCustomResidualAttentionBlock,
    AttentionalPooler: PatchedAttentionalPooler,
}
_HOST = {patched: host for host, patched in _PATCHED.items()}


def find_tower(model: nn.Module) -> nn.Module:
    """The vision tower of an open_clip model, or the tower itself."""
    return model if isinstance(model, VisionTransformer) else getattr(model, "visual", model)


def check_tower(visual: Any) -> None:
    """Raises TypeError, with what is supported and what came, unless every part of the tower is known."""
    _require(visual, (VisionTransformer,), "the image tower")
    _require(visual.transformer, (Transformer, CustomTransformer), "the tower's transformer")
    if not getattr(visual.transformer, "batch_first", True):
        raise TypeError("patching supports a transformer with batch_first=True; this one has batch_first=False")
    for i, block in enumerate(visual.transformer.resblocks):
        _require(block, (ResidualAttentionBlock, CustomResidualAttentionBlock), f"block {i}")
        if hasattr(block, "ln_1_kv"):
            raise TypeError(f"patching supports self-attention blocks; block {i} is built for cross-attention")
        attention_kind(block.attn)
    for pooler in (visual.attn_pool, getattr(visual, "attn_pool_contrastive", None)):
        if pooler is not None:
            _require(pooler, (AttentionalPooler,), "the attentional pooler")
            attention_kind(pooler.attn, packed=False)
    if any(type(p).__name__ == "DTensor" for p in visual.parameters()):
        raise TypeError("the model's parameters are already sharded; patch first, then call fully_shard")


def _require(module: nn.Module, known: tuple[type, ...], role: str) -> None:
    if type(module) in known:
        if "forward" in module.__dict__:  # it would hide the patched class's forward
            raise TypeError(f"{role} has a forward of its own set on the instance; undo that before patching")
        return
    names = " or ".join(cls.__name__ for cls in known)
    if any(cls.__name__ == "FSDPModule" for cls in type(module).__mro__):
        raise TypeError(f"{role} is already sharded ({type(module).__name__}); patch first, then call fully_shard")
    raise TypeError(
        f"patch_clip supports open_clip's {names} as {role}, exactly (no subclass or wrapper), got "
        f"{qualified_name(module)}"
    )


def _parts(visual: Any) -> list[tuple[str, nn.Module]]:
    parts = [("the image tower", visual), ("the tower's transformer", visual.transformer)]
    parts += [(f"block {i}", block) for i, block in enumerate(visual.transformer.resblocks)]
    poolers = (visual.attn_pool, getattr(visual, "attn_pool_contrastive", None))
    return parts + [("the attentional pooler", pooler) for pooler in poolers if pooler is not None]


def native_tokens(visual: Any) -> int:
    """Tokens at the image size the tower was built for, class token included."""
    return visual.positional_embedding.shape[0]


def num_blocks(visual: Any) -> int:
    return len(visual.transformer.resblocks)


def put_on(visual: nn.Module, settings: PatchSettings) -> None:
    visual._alt_patch = settings  # type: ignore[assignment]
    for _, module in _parts(visual):
        module.__class__ = _PATCHED[type(module)]


def take_off(visual: nn.Module) -> None:
    """Gives every part its host's class back; nothing is changed unless all of them can have it."""
    parts = _parts(visual)
    for role, module in parts:
        if type(module) not in _HOST or "forward" in module.__dict__:
            raise RuntimeError(
                f"cannot remove the patch: {role} was sharded, wrapped or given another forward since (it is "
                f"{qualified_name(module)} now); undo that first, or set handle.r = 0"
            )
    for _, module in parts:
        module.__class__ = _HOST[type(module)]
    del visual._alt_patch
