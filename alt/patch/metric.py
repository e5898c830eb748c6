"""The rows that matching compares: the keys of a block, or their mean over heads by a projection of its own.

``keys``: the matching kernel reads all keys ``[B, H, N, D]`` and takes the mean over heads, in float32.

``rotated``: the same of keys that attention has rotated by the positions of their tokens.

``projection``: that mean is itself a linear map of the block's normed input x ``[B, N, C]``, since the keys are::

    k_h = x W_h^T + b_h            W_h [D, C], b_h [D]: the rows of head h in the key projection
    m   = x W^T + b                W = (1 / H) sum_h W_h,  b = (1 / H) sum_h b_h

W and b are summed in float32 (float64 for float64 weights) and rounded to the dtype of the weights. m ``[B, N, D]`` has
the dtype of the other projections. So in low precision m is rounded once more than the mean of ``keys``, and W too.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from alt.hosts import HostAttention
from alt_kernels import Impl, Matching, bipartite_soft_matching, bipartite_soft_matching_from_keys

Metric = Literal["keys", "projection", "rotated"]


def check_metric(metric: object) -> Metric:
    """Returns ``metric``; raises ValueError unless it is one of the three."""
    if metric not in get_args(Metric):
        raise ValueError(f"metric must be 'keys', 'projection' or 'rotated', got {metric!r}")
    return metric  # type: ignore[return-value]


def mean_projection(attention: HostAttention) -> tuple[Tensor, Tensor | None]:
    """Returns W ``[D, C]`` and b ``[D]`` (None without biases), without gradient.

    They are computed in every call. A kept copy could not be trusted: writes through ``.data`` (peft's merging, several
    optimizers, FSDP2's gathering) leave no mark on a weight, and a captured CUDA graph runs no check.
    """
    with torch.no_grad():
        weight, bias, heads = attention.key_projection()
        return _mean(weight, heads), None if bias is None else _mean(bias, heads)


def project_metric(attention: HostAttention, x: Tensor) -> Tensor:
    """Returns m ``[B, N, D]`` of ``x`` ``[B, N, C]`` by a product of its own, without gradient."""
    with torch.no_grad():
        return F.linear(x, *mean_projection(attention))


def match(rows: Tensor, r: int, num_protected: int, impl: Impl) -> Matching:
    """Returns the plan of keys ``[B, H, N, D]`` or of their mean m ``[B, N, D]``."""
    if rows.dim() == 3:
        return bipartite_soft_matching(rows, r, num_protected=num_protected, impl=impl)
    return bipartite_soft_matching_from_keys(rows, r, num_protected=num_protected, impl=impl)


def match_clips(rows: Tensor, r: int, num_protected: int, frames: int, impl: Impl) -> Matching:
    """Returns plans of images that are the frames of clips, in order: all ``frames`` of a clip have one plan.

    It compares the rows of a token in all frames at once: the cosine of these rows in one long vector, which is the
    mean of the frames' products over the mean of their squared norms.

    Args:
        rows: of ``B * frames`` images, as in :func:`match`.

    Raises:
        ValueError: they are no whole clips.
    """
    if len(rows) % frames:
        raise ValueError(f"expected whole clips of {frames} frames to match, got {len(rows)} images")
    mean = rows if rows.dim() == 3 else rows.mean(1, dtype=torch.promote_types(rows.dtype, torch.float32))
    joined = mean.unflatten(0, (-1, frames)).transpose(1, 2).flatten(2)
    plan = bipartite_soft_matching(joined, r, num_protected=num_protected, impl=impl)
    return Matching(*(part.repeat_interleave(frames, 0) for part in plan))


def hide_padding(rows: Tensor, size: Tensor) -> Tensor:
    """Returns rows that are 0 where ``size`` ``[B, N]`` is: such a row scores -inf, so padding merges with nothing.

    Where a block removes more tokens than a sequence has pairs of real tokens, padding goes instead, without an effect.
    """
    padding = size == 0
    return rows.masked_fill(padding[:, None, :, None] if rows.dim() == 4 else padding[:, :, None], 0)


def _mean(rows: Tensor, heads: int) -> Tensor:
    """Returns the mean over heads of ``rows`` ``[H D, ...]``: ``[D, ...]``."""
    exact = torch.float64 if rows.dtype == torch.float64 else torch.float32
    return rows.unflatten(0, (heads, -1)).mean(0, dtype=exact).to(rows.dtype)
