"""One merge step: where the operations of ``alt_kernels`` meet a transformer block.

A block with merging between attention and MLP (Bolya et al. 2023, section 3; ALT, Eq. 2), pre-norm::

    y     = after_attention(attention(norm_1(x); s))     log s_j is added to every logit of key j
    x', s' = merge(x + y, s)                              the r most similar pairs, by the block's own keys (metric.py)
    out   = x' + feed_forward(norm_2(x'))

A post-norm block (Vaswani et al. 2017) merges what its first norm returns::

    z     = norm_1(x + after_attention(attention(x; s)))
    z', s' = merge(z, s)
    out   = norm_2(z' + feed_forward(z'))

The parts are the block's own modules, as its host lists them (:class:`alt.hosts.BlockParts`). Each part runs through
its own call, with one exception: the fused operations read the weights of attention and norm_2 if these are of a known
kind and carry no hooks, wrappers or parametrizations.

A block may have a submodule ``adapter``, which is called at three points: ``before_attention(parts, x, ...)``,
``after_attention(y)`` and ``beside_mlp(y, normed)``; see ``alt.models.adapters``. Other submodules that it may have
are ``message_adapter``, called with x, whose result joins the block's attention as guests
(:class:`alt.hosts.BlockParts`; ``alt.models.messages``), and ``key_adapter``, called with the keys of the logits
(``alt.models.cross_frame``). With ``matched_frames`` of ``adapter`` or ``key_adapter`` so many images in a row, which
are the frames of a clip, get one plan.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alt.hosts import BlockParts, Host
from alt.hosts.modules import has_hooks
from alt_kernels import Impl, Matching, merge_layer_norm, weighted_merge

from .attention import self_attention
from .beside import start
from .metric import Metric, hide_padding, match, match_clips


class BlockCall:
    """Arguments and results of one block call, apart from x.

    It is deliberately neither a tuple, a dict nor a dataclass. Wrappers such as FSDP2 rebuild those and cast their
    tensors, and a bfloat16 size cannot count beyond 256; other objects pass through untouched. One object serves one
    call of one block and is never shared, so a recomputation finds the decisions of its first run.
    """

    def __init__(
        self,
        host: Host,
        tower: nn.Module,
        index: int,
        num_tokens: int,
        size: Tensor | None,
        r: int,
        *,
        num_protected: int,
        prop_attn: bool,
        impl: Impl,
        metric: Metric,
        padded: bool = False,
        positions: Tensor | None = None,
        matching: Matching | None = None,
    ) -> None:
        self.host = host
        self.tower = tower
        self.index = index
        self.num_tokens = num_tokens
        self.size = size
        self.r = r
        self.num_protected = num_protected
        self.prop_attn = prop_attn
        self.impl = impl
        self.metric = metric
        self.padded = padded
        self.positions = positions
        self.matching = matching
        self.sequence_first = host.sequence_first(tower)
        self.merged_size: Tensor | None = None
        self.merged_positions: Tensor | None = None

    def run(self, block: nn.Module, x: Tensor) -> Tensor:
        return self.swap(merge_step(block, self.swap(x), self))

    def swap(self, x: Tensor) -> Tensor:
        """Turns ``[B, N, C]`` into the layout of the host's blocks, and back: a view."""
        return x.transpose(0, 1) if self.sequence_first else x


def merge_step(block: nn.Module, x: Tensor, call: BlockCall) -> Tensor:
    """Runs one block on ``x`` ``[B, N, C]``: returns ``[B, N - r, C]`` and leaves plan and sizes in ``call``."""
    if x.shape[1] != call.num_tokens:
        raise ValueError(
            f"a forward pre-hook on a patched block gave it {x.shape[1]} tokens instead of "
            f"{call.num_tokens}; hooks may change the tokens, not their number"
        )
    r, size, impl = call.r, call.size, call.impl
    parts = call.host.block_parts(block, call.tower, call.index)
    messages: Any = getattr(block, "message_adapter", None)
    if messages is not None:
        parts = parts._replace(guests=messages)
    drop_path: Any = getattr(block, "drop_path_adapter", None)
    if drop_path is not None:
        parts = drop_path.wrap(parts)
    adapter: Any = getattr(block, "adapter", None)
    keys: Any = getattr(block, "key_adapter", None)
    if parts.post_norm and (adapter is not None or parts.guests is not None):
        raise TypeError("adapters and guests need pre-norm blocks, got a post-norm block")
    if adapter is not None:
        x = adapter.before_attention(parts, x, merged=size is not None, num_protected=call.num_protected)
    plan: Callable[[], Matching] | None = None

    def compare(rows: Tensor) -> None:
        nonlocal plan

        def make() -> Matching:
            shown = hide_padding(rows, size) if call.padded and size is not None else rows
            frames = getattr(adapter, "matched_frames", None) or getattr(keys, "matched_frames", None)
            if frames is not None:
                return match_clips(shown, r, call.num_protected, frames, impl)
            return match(shown, r, call.num_protected, impl)

        plan = start(make)

    # An existing plan comes from the first run of a checkpointed block.
    y = _attend(parts, x, call, compare if r > 0 and call.matching is None else None, keys)
    y = parts.after_attention(y)
    if adapter is not None:
        y = adapter.after_attention(y)
    if r > 0 and call.matching is None:
        assert plan is not None
        call.matching = plan()
    if call.matching is not None and call.positions is not None:
        call.merged_positions = weighted_merge(call.positions, call.matching, size, impl=impl).x
    if parts.post_norm:
        return _finish_post_norm(parts, parts.norm_1(x + y), call)
    if call.matching is None:
        x = x + y
        return x + _feed_forward(parts, parts.norm_2(x), adapter)
    norm: Any = parts.norm_2
    if is_plain_layer_norm(norm, x.shape[-1], call.host):
        x, normed, call.merged_size = merge_layer_norm(
            x, y, call.matching, size, norm.weight, norm.bias, norm.eps, impl=impl
        )
    else:
        x, call.merged_size = weighted_merge(x + y, call.matching, size, impl=impl)
        normed = norm(x)
    return x + _feed_forward(parts, normed, adapter)


def _finish_post_norm(parts: BlockParts, z: Tensor, call: BlockCall) -> Tensor:
    """Merges and finishes a post-norm block."""
    if call.matching is not None:
        z, call.merged_size = weighted_merge(z, call.matching, call.size, impl=call.impl)
    return parts.norm_2(z + parts.feed_forward(z))


def _attend(
    parts: BlockParts, x: Tensor, call: BlockCall, compare: Callable[[Tensor], None] | None, keys: Any
) -> Tensor:
    size, positions = call.size if call.prop_attn else None, call.positions
    options: Any = {"metric": call.metric, "impl": call.impl, "mix_keys": None if keys is None else keys.mix}
    if parts.guests is None:
        normed = x if parts.post_norm else parts.norm_1(x)
        return self_attention(parts.attention, normed, size, positions, compare=compare, **options)
    guests = parts.guests(x)
    if size is not None:
        size = torch.cat([size, size.new_ones(guests.shape[:2])], 1)
    if positions is not None:  # guests lie where protected tokens do, and are not rotated
        positions = F.pad(positions, (0, 0, 0, guests.shape[1]))
    joined, tokens = parts.norm_1(torch.cat([x, guests], 1)), x.shape[1]
    if compare is not None:
        options["compare"] = lambda rows: compare(rows[..., :tokens, :])
    return self_attention(parts.attention, joined, size, positions, **options)[:, :tokens]


def _feed_forward(parts: BlockParts, normed: Tensor, adapter: Any) -> Tensor:
    y = parts.feed_forward(normed)
    return y if adapter is None else adapter.beside_mlp(y, normed)


def is_plain_layer_norm(module: Any, width: int, host: Host) -> bool:
    """Returns True if a norm over ``width`` channels is a LayerNorm and nothing else, so that it may be fused."""
    return (
        host.is_layer_norm(module)
        and not has_hooks(module)
        and module.normalized_shape == (width,)  # no wrapper, because the class above is a LayerNorm
    )
