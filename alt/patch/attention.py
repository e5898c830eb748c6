"""Self-attention of a block with token sizes, and the keys that matching compares.

There are two paths with the same result. The fused path passes the module's weights to ``proportional_attention`` and
reuses its keys. A module that carries hooks or is a wrapper takes the unfused path through its own call: sizes are an
additive mask, and the keys are projected separately.
"""

from __future__ import annotations

from torch import Tensor

from alt.hosts import HostAttention
from alt.hosts.pooling import key_bias
from alt_kernels import Impl, proportional_attention


def self_attention(
    attention: HostAttention,
    x: Tensor,
    size: Tensor | None = None,
    positions: Tensor | None = None,
    *,
    want_keys: bool = False,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Returns ``(y [B, N, C], keys)`` for ``x`` ``[B, N, C]`` with key sizes ``[B, N]`` or None.

    ``keys`` ``[B, H, N, D]`` are normalised but not rotated, and have no gradient. They are None unless requested.
    ``positions`` ``[B, N, P]`` go to hosts that rotate q and k.
    """
    if attention.can_fuse():
        projected = attention.project(x, positions)
        q, k, v, scale = projected.q, projected.k, projected.v, projected.scale
        y = proportional_attention(q, k, v, size, scale=scale, impl=impl)
        return attention.join_heads(y, x), projected.keys.detach() if want_keys else None
    # The call first: its pre-hooks may make the weights that the keys are projected with (pruning, weight norm).
    y = attention.call_module(x, key_bias(size, x.dtype), positions)
    return y, attention.project_keys(x, positions) if want_keys else None
