"""Self-attention of a block with token sizes, and the keys that matching compares.

Two paths with the same result. Fused: the module's weights feed ``proportional_attention``, and the keys are the
very ones it used. Unfused, through the module's own call, wherever the module carries hooks or is a wrapper: the
sizes go in as an additive mask, and the keys come from a projection of their own.
"""

from __future__ import annotations

from torch import Tensor

from alt.hosts import HostAttention
from alt.hosts.pooling import key_bias
from alt_kernels import proportional_attention


def self_attention(
    attention: HostAttention,
    x: Tensor,
    size: Tensor | None = None,
    positions: Tensor | None = None,
    *,
    want_keys: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Returns ``(y [B, N, C], keys)`` of ``x`` ``[B, N, C]`` with key sizes ``[B, N]`` or None.

    ``keys`` ``[B, H, N, D]`` are after q/k normalisation and before rotation, and without gradient. They are None
    unless asked for. ``positions`` ``[B, N, P]`` go to hosts that rotate q and k.
    """
    if attention.can_fuse():
        projected = attention.project(x, positions)
        y = proportional_attention(projected.q, projected.k, projected.v, size, scale=projected.scale)
        return attention.join_heads(y, x), projected.keys.detach() if want_keys else None
    # The keys first: some wrappers swap their weights for the length of their call.
    keys = attention.project_keys(x, positions) if want_keys else None
    return attention.call_module(x, key_bias(size, x.dtype), positions), keys
