"""Self-attention of a block with token sizes, and the keys that matching compares.

There are two paths with the same result. The fused path passes the module's weights to ``proportional_attention`` and
reuses its keys. A module that carries hooks or is a wrapper takes the unfused path through its own call: sizes are an
additive mask, and the keys or their mean are projected separately.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from alt.hosts import HostAttention
from alt.hosts.pooling import key_bias
from alt_kernels import Impl, proportional_attention

from .metric import Metric, mean_projection, project_metric


def self_attention(
    attention: HostAttention,
    x: Tensor,
    size: Tensor | None = None,
    positions: Tensor | None = None,
    *,
    metric: Metric = "keys",
    compare: Callable[[Tensor], None] | None = None,
    mix_keys: Callable[[Tensor], Tensor] | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Returns y ``[B, N, C]`` for ``x`` ``[B, N, C]`` with key sizes ``[B, N]`` or None.

    ``compare``, if given, is called with the rows that matching compares, as soon as they are there. They have no
    gradient: keys ``[B, H, N, D]``, normalised but not rotated, for the metric ``"keys"``, and rotated for
    ``"rotated"``; the mean of the former ``[B, N, D]`` for ``"projection"``. ``positions`` ``[B, N, P]`` go to hosts
    that rotate q and k. ``mix_keys`` makes the keys of the logits, ``[B, H, N, D]``, from the image's own.

    Raises:
        TypeError: keys are to be mixed in an attention that has to run through its own call.
    """
    if attention.can_fuse():
        if compare is not None and metric == "projection":
            projected, rows = attention.project_beside(x, positions, lambda: mean_projection(attention))
            compare(rows)
        else:
            projected = attention.project(x, positions)
            if compare is not None:
                compare((projected.k if metric == "rotated" else projected.keys).detach())
        q, k, v, scale = projected.q, projected.k, projected.v, projected.scale
        if mix_keys is not None:
            k = mix_keys(k)
        y = proportional_attention(q, k, v, size, scale=scale, impl=impl)
        return attention.join_heads(y, x)
    if mix_keys is not None:
        raise TypeError("attention across frames needs a plain attention module, got one with a hook or a wrapper")
    # The call first: its pre-hooks may make the weights that the keys are projected with (pruning, weight norm).
    y = attention.call_module(x, key_bias(size, x.dtype), positions)
    if compare is not None:
        if metric == "projection":
            compare(project_metric(attention, x))
        else:
            compare(attention.project_keys(x, positions if metric == "rotated" else None))
    return y
