"""One merge step: where the operations of ``alt_kernels`` meet a transformer block.

A pre-norm block with merging between attention and MLP (Bolya et al. 2023, section 3; ALT, Eq. 2)::

    y     = ls_1(attention(ln_1(x); s))        log s_j is added to every logit of key j
    x', s' = merge(x + y, s)                    the r most similar pairs, by the block's own keys
    out   = x' + ls_2(mlp(ln_2(x')))

The block's own submodules do the work, each through its own call, except where attention and ln_2 are of a
kind known here and carry nothing of their own (hooks, wrappers, parametrizations): then the fused operations
read their weights.

A block may carry a submodule ``adapter``, which is asked at three points: ``before_attention(block, x, merged)``,
``after_attention(y)`` and ``beside_mlp(y, normed)``; see ``alt.models.adapters``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from alt_kernels import (
    Matching,
    bipartite_soft_matching_from_keys,
    merge_layer_norm,
    source_map,
    unmerge,
    weighted_merge,
)

from .attention import attend, has_hooks, qualified_name

_PLAIN_LAYER_NORMS = {
    "torch.nn.modules.normalization.LayerNorm",
    "open_clip.transformer.LayerNorm",
    "open_clip.transformer.LayerNormFp32",
    "open_clip.layers.LayerNorm",
    "open_clip.layers.LayerNormFp32",
}


class BlockCall:
    """What one block call is given besides x, and where it leaves its results besides x.

    Neither a tuple, dict nor dataclass on purpose: wrappers such as FSDP2 rebuild and cast what they find in
    those (a bfloat16 size cannot count beyond 256), and pass anything else through untouched. One object
    serves one call of one block and is never shared, so a recomputation finds what its first run decided.
    """

    def __init__(
        self, num_tokens: int, size: Tensor | None, r: int, prop_attn: bool, matching: Matching | None = None
    ) -> None:
        self.num_tokens = num_tokens
        self.size = size
        self.r = r
        self.prop_attn = prop_attn
        self.matching = matching
        self.merged_size: Tensor | None = None


def merge_step(block: Any, x: Tensor, call: BlockCall) -> Tensor:
    """One block on ``x`` ``[B, N, C]``; returns ``[B, N - r, C]`` and leaves plan and sizes in ``call``."""
    if x.shape[1] != call.num_tokens:
        raise ValueError(
            f"a forward pre-hook on a patched block gave it {x.shape[1]} tokens instead of "
            f"{call.num_tokens}; hooks may change the tokens, not their number"
        )
    r, size = call.r, call.size
    adapter = getattr(block, "adapter", None)
    if adapter is not None:
        x = adapter.before_attention(block, x, merged=size is not None)
    # A plan that is already there was made by the first run of a checkpointed block.
    want_keys = r > 0 and call.matching is None
    y, keys = attend(
        block.attn,
        block.ln_1(x),
        size if call.prop_attn else None,
        want_keys,
        names_keys=hasattr(block, "attention"),  # the default block's method; the custom block has none
    )
    ln_attn = getattr(block, "ln_attn", None)
    if ln_attn is not None:
        y = ln_attn(y)
    y = block.ls_1(y)
    if adapter is not None:
        y = adapter.after_attention(y)
    if r == 0:
        call.merged_size = size
        x = x + y
        return x + _feed_forward(block, block.ln_2(x), adapter)
    if call.matching is None:
        assert keys is not None
        call.matching = bipartite_soft_matching_from_keys(keys, r, num_protected=1)
    ln_2 = block.ln_2
    if is_plain_layer_norm(ln_2, x.shape[-1]):
        x, normed, call.merged_size = merge_layer_norm(x, y, call.matching, size, ln_2.weight, ln_2.bias, ln_2.eps)
    else:
        x, call.merged_size = weighted_merge(x + y, call.matching, size)
        normed = ln_2(x)
    return x + _feed_forward(block, normed, adapter)


def _feed_forward(block: Any, normed: Tensor, adapter: Any) -> Tensor:
    y = block.ls_2(block.mlp(normed))
    return y if adapter is None else adapter.beside_mlp(y, normed)


def run_block(
    block: nn.Module, x: Tensor, size: Tensor | None, r: int, *, prop_attn: bool, checkpointing: bool
) -> tuple[Tensor, Tensor | None, Matching | None]:
    """One block through its own ``__call__``: ``(x, size, plan)`` after it, the plan None where r is 0.

    With ``checkpointing`` the block is recomputed in the backward, with the plan of its first run: near-ties
    must not fall otherwise the second time (a LoRA wrapper that merges and un-merges its weights in every
    forward changes them by a rounding).
    """
    num_tokens = x.shape[1]
    if checkpointing:
        # A compiled graph recomputes what it traced, so needs no memory of the plan (and allows none).
        memory: list[Matching] | None = None if torch.compiler.is_compiling() else []
        result = checkpoint(_call_block, block, x, size, r, prop_attn, memory, use_reentrant=False)
    else:
        result = _call_block(block, x, size, r, prop_attn, None)
    x = result[0]
    if x.dim() != 3 or x.shape[1] != num_tokens - r:
        raise ValueError(
            f"a forward hook on a patched block returned a tensor of shape {tuple(x.shape)} where "
            f"{num_tokens - r} tokens were expected; hooks may change the tokens, not their number"
        )
    if r == 0:
        return x, size, None
    return x, result[1], Matching(*result[2:])


def _call_block(
    block: nn.Module,
    x: Tensor,
    size: Tensor | None,
    r: int,
    prop_attn: bool,
    memory: list[Matching] | None,
) -> tuple[Tensor, ...]:
    """All results as return values, so that checkpointing needs no side effects; ``(x,)`` where r is 0."""
    call = BlockCall(x.shape[1], size, r, prop_attn, memory[0] if memory else None)
    x = block(x, merge=call)
    if r == 0:
        return (x,)
    if call.matching is None or call.merged_size is None:
        raise RuntimeError(f"{type(block).__name__} did not merge: a wrapper around it dropped the merge argument")
    if memory is not None and not memory:
        memory.append(call.matching)
    return (x, call.merged_size, *call.matching)


def is_plain_layer_norm(module: nn.Module, width: int) -> bool:
    """Whether a LayerNorm over ``width`` channels does nothing but its equation, so that it may be fused."""
    return (
        qualified_name(module) in _PLAIN_LAYER_NORMS
        and not has_hooks(module)
        and module.normalized_shape == (width,)  # not a wrapper: the name above is that of a LayerNorm
    )


def restore_grid(x: Tensor, matchings: list[Matching | None]) -> Tensor:
    """``x`` ``[B, n, C]`` after a chain of plans (None where nothing merged), copied back to the N input tokens.

    One pass whatever the depth: the chain is first composed to a single plan, whose rows the gradient then
    sums in a fixed order.
    """
    plans = [plan for plan in matchings if plan is not None]
    if not plans:
        return x
    if len(plans) == 1:
        return unmerge(x, plans[0])
    output_row = source_map(plans).to(torch.int32)
    rows, indices = output_row.sort(dim=1, stable=True)
    starts = torch.arange(x.shape[1] + 1, dtype=torch.int32, device=x.device)
    offsets = torch.searchsorted(rows, starts.expand(x.shape[0], -1).contiguous(), out_int32=True)
    return unmerge(x, Matching(indices.to(torch.int32), offsets, output_row))
