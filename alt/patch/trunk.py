"""The loop over the blocks of a patched tower."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from alt.hosts import Host
from alt_kernels import Impl, Matching, weighted_merge

from .metric import Metric
from .protect import ProtectedPatches
from .restore import restore_grid
from .step import BlockCall


class TrunkCall:
    """Arguments and results of one run over the blocks, apart from x.

    An object for the reason given at :class:`BlockCall`. It serves one forward.

    Attributes:
        removed: tokens that each block merges away.
        size: current token sizes ``[B, n]``; None while each token stands for one patch.
        padded: True if tokens of size 0, which are padding, may be among them.
        positions: current token positions ``[B, n, P]``, for hosts that rotate q and k.
        matchings: the plan of each finished block, None where nothing merged. With protected patches the plan that
            puts them first comes before those.
        finished: number of finished blocks.
        take, intermediates, merged_output: see :class:`alt.hosts.merging.TrunkMerge`.
    """

    def __init__(
        self,
        host: Host,
        tower: nn.Module,
        num_tokens: int,
        removed: tuple[int, ...],
        *,
        num_protected: int,
        prop_attn: bool,
        impl: Impl,
        metric: Metric,
        size: Tensor | None = None,
        positions: Tensor | None = None,
        protected: ProtectedPatches | None = None,
        frames: int = 1,
        merged_output: bool = False,
    ) -> None:
        self.host = host
        self.tower = tower
        self.num_tokens = num_tokens
        self.removed = removed
        self.num_protected = num_protected
        self.prop_attn = prop_attn
        self.impl = impl
        self.metric = metric
        self.size = size
        self.padded = size is not None
        self.positions = positions
        self.protected = protected
        self.frames = frames
        self.merged_output = merged_output
        self.matchings: list[Matching | None] = []
        self.finished = 0
        self.take: tuple[int, ...] = ()
        self.intermediates: list[Tensor] = []

    def run(self, x: Tensor, blocks: Iterable[nn.Module], checkpointing: bool) -> Tensor:
        if self.protected is not None:
            x = self._arrange(x, self.protected)
        for i, block in enumerate(blocks):
            x = self._run_block(i, block, x, checkpointing)
            if i in self.take:
                self.intermediates.append(self.restore(x))
        return x

    def _arrange(self, x: Tensor, protected: ProtectedPatches) -> Tensor:
        """Moves protected patches behind the special tokens, with their sizes and positions."""
        special = self.host.num_protected(self.tower)
        if protected.per_image and any(_attends_over_time(block) for block in self.host.blocks(self.tower)):
            raise ValueError(
                "protect: expected one mask for all images, because temporal adapters join the same patch of all "
                f"frames, got masks for {len(protected.mask)} images"
            )
        plan = protected.arrange(x.shape[0], special, self.frames, x.device)
        self.matchings.append(plan)
        if self.positions is not None:
            self.positions = weighted_merge(self.positions, plan, impl=self.impl).x
        if self.size is not None:
            self.size = weighted_merge(self.size[..., None], plan, impl=self.impl).x[..., 0]
        return weighted_merge(x, plan, impl=self.impl).x

    def restore(self, x: Tensor) -> Tensor:
        return x if self.merged_output else restore_grid(x, self.matchings, self.impl)

    def _run_block(self, index: int, block: nn.Module, x: Tensor, checkpointing: bool) -> Tensor:
        """Runs one block through its own ``__call__``.

        With ``checkpointing`` the block is recomputed in the backward. The recomputation reuses the first plan: a
        LoRA wrapper changes the weights by a rounding error, which could flip a near-tie.
        """
        num_tokens, r = x.shape[1], self.removed[index]
        arguments = (self, index, block, x, self.size, self.positions)
        if checkpointing:
            # A compiled graph recomputes what it traced, so it needs no memory of the plan (and allows none).
            memory: list[Matching] | None = None if torch.compiler.is_compiling() else []
            result = checkpoint(_call_block, *arguments, memory, use_reentrant=False)
        else:
            result = _call_block(*arguments, None)
        x = result[0]
        if x.dim() != 3 or x.shape[1] != num_tokens - r:
            raise ValueError(
                f"a forward hook on a patched block returned a tensor of shape {tuple(x.shape)} where "
                f"{num_tokens - r} tokens were expected; hooks may change the tokens, not their number"
            )
        self.finished += 1
        if r == 0:
            self.matchings.append(None)
            return x
        self.size = result[1]
        self.matchings.append(Matching(*result[2:5]))
        self.positions = result[5] if len(result) > 5 else None
        return x


def _attends_over_time(block: nn.Module) -> bool:
    return getattr(getattr(block, "adapter", None), "temporal", None) is not None


def _call_block(
    trunk: TrunkCall,
    index: int,
    block: nn.Module,
    x: Tensor,
    size: Tensor | None,
    positions: Tensor | None,
    memory: list[Matching] | None,
) -> tuple[Tensor, ...]:
    """Returns ``(x,)`` if r is 0, else x, size, the plan and the positions, if any.

    All results are return values, so checkpointing needs no side effects.
    """
    r = trunk.removed[index]
    call = BlockCall(
        trunk.host,
        trunk.tower,
        index,
        x.shape[1],
        size,
        r,
        num_protected=trunk.num_protected,
        prop_attn=trunk.prop_attn,
        impl=trunk.impl,
        metric=trunk.metric,
        padded=trunk.padded,
        positions=positions,
        matching=memory[0] if memory else None,
    )
    x = block(call.swap(x), merge=call)
    if x.dim() == 3:  # otherwise the caller says so
        x = call.swap(x)
    if r == 0:
        return (x,)
    if call.matching is None or call.merged_size is None:
        raise RuntimeError(f"{type(block).__name__} did not merge: a wrapper around it dropped the merge argument")
    if memory is not None and not memory:
        memory.append(call.matching)
    after = () if call.merged_positions is None else (call.merged_positions,)
    return (x, call.merged_size, *call.matching, *after)
