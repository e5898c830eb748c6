"""Contract of bipartite soft matching: a merging plan from a metric or from the keys of an attention."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import checks, library
from ..reference import bipartite_soft_matching as reference
from ..types import Impl, Matching

_OPS = torch.ops.alt_kernels


def bipartite_soft_matching(metric: Tensor, r: int, *, num_protected: int = 1, impl: Impl = "auto") -> Matching:
    r"""Returns the plan that merges the ``r`` tokens of A that are most similar to a token of B.

    A holds the even and B the odd positions of the sequence, without the first ``num_protected`` tokens, which
    never merge (for one class token this is the split of the paper). With :math:`\hat m = m / |m|`,

    .. math:: b(a) = \arg\max_{b \in B} \hat m_a \cdot \hat m_b, \qquad
              \text{the } r \text{ tokens } a \text{ with the highest } \hat m_a \cdot \hat m_{b(a)}
              \text{ merge into } b(a).

    Among equal scores the lower index of a merges first, and the lowest b is taken. A row of zeros or with a
    non-finite entry scores -inf as source and as destination. If ``r`` exceeds the number of finite candidates, the
    remaining sources are taken by index and go to the lowest unprotected b. Not differentiable. Deterministic.

    Args:
        metric: ``[B, N, C]``, C >= 1, the rows that are compared (in a ViT the keys, averaged over heads).
            float32, float16, bfloat16 (scores accumulate in float32) or float64 (in float64). Any strides.
        r: the number of tokens to remove, ``0 <= r <= (N - num_protected) // 2``. 0 is the identity plan.
        num_protected: the number of leading tokens that never merge (class token, registers), 0 to N.
        impl: ``"auto"`` (C++ on CPU where built), ``"reference"``, ``"cpp"``, ``"triton"`` or ``"cuda"`` (N <= 512).

    Returns:
        Matching: the plan, N' = N - r output rows.

    Raises:
        TypeError: ``metric`` is not a float tensor, or ``r`` or ``num_protected`` is not an int.
        ValueError: a shape or ``r`` is outside the range above.
        RuntimeError: ``impl`` names an implementation that cannot run here.

    Source: Bolya et al., "Token Merging: Your ViT But Faster" (arXiv 2210.09461), section 3; ALT, Eq. 2.

    Example:
        >>> keys = torch.randn(2, 197, 64)
        >>> plan = bipartite_soft_matching(keys, 8)
        >>> plan.offsets.shape[1] - 1  # rows that are left
        189
    """
    checks.tensor("metric", metric, "[B, N, C]")
    r, num_protected = _check("metric", metric, r, num_protected)
    if library.use_cuda("bipartite_matching", impl, metric):
        return Matching(*_OPS.bipartite_matching_cuda(metric.detach(), r, num_protected))
    run = reference.bipartite_matching if library.use_reference(impl, metric) else _OPS.bipartite_matching
    return Matching(*run(metric.detach(), r, num_protected))


def bipartite_soft_matching_from_keys(k: Tensor, r: int, *, num_protected: int = 1, impl: Impl = "auto") -> Matching:
    r"""Returns the plan of :func:`bipartite_soft_matching` for the keys of an attention, averaged over its heads.

    .. math:: m_n = \frac{1}{H} \sum_h k_{h n}

    The mean is taken in float32 (float64 for float64 keys). It reads the keys in place, for example in a packed
    projection of queries, keys and values. On a GPU the matching kernel takes the mean and does not write it to memory.

    Args:
        k: ``[B, H, N, D]``, H >= 1, D >= 1, any strides; float32, float16, bfloat16 or float64.
        r: as in :func:`bipartite_soft_matching`.
        num_protected: as in :func:`bipartite_soft_matching`.
        impl: as in :func:`bipartite_soft_matching`.

    Returns:
        Matching: the plan, N' = N - r output rows.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`bipartite_soft_matching`.

    Source: Bolya et al., "Token Merging: Your ViT But Faster" (arXiv 2210.09461), section 3.

    Example:
        >>> packed = torch.randn(2, 197, 3, 12, 64)
        >>> plan = bipartite_soft_matching_from_keys(packed[:, :, 1].transpose(1, 2), 8)
        >>> plan.indices.shape
        torch.Size([2, 197])
    """
    checks.tensor("k", k, "[B, H, N, D]")
    if k.shape[1] < 1:
        raise ValueError(f"k: expected at least one head, got shape {list(k.shape)}")
    r, num_protected = _check("k", k, r, num_protected)
    if library.use_cuda("bipartite_matching_from_keys", impl, k):
        return Matching(*_OPS.bipartite_matching_from_keys_cuda(k.detach(), r, num_protected))
    from_reference = library.use_reference(impl, k)
    run = reference.bipartite_matching_from_keys if from_reference else _OPS.bipartite_matching_from_keys
    return Matching(*run(k.detach(), r, num_protected))


def _check(name: str, rows: Tensor, r: int, num_protected: int) -> tuple[int, int]:
    """Returns r and num_protected as ints; raises unless ``rows`` ``[..., N, C]`` have a channel and N allows both."""
    tokens, channels = rows.shape[-2:]
    if channels < 1:
        raise ValueError(f"{name}: expected at least one channel, got shape {list(rows.shape)}")
    num_protected = checks.integer("num_protected", num_protected, 0)
    if num_protected > tokens:
        raise ValueError(f"num_protected: expected at most the {tokens} tokens of {name}, got {num_protected}")
    r = checks.integer("r", r, 0)
    limit = (tokens - num_protected) // 2
    if r > limit:
        raise ValueError(
            f"r: expected at most {limit}, half of the {tokens - num_protected} unprotected tokens of {name}, got {r}"
        )
    return r, num_protected


def _fake(metric: Tensor, r: int, num_protected: int) -> tuple[Tensor, Tensor, Tensor]:
    batch, tokens = metric.shape[0], metric.shape[-2]
    indices = metric.new_empty((batch, tokens), dtype=torch.int32)
    offsets = metric.new_empty((batch, tokens - r + 1), dtype=torch.int32)
    return indices, offsets, torch.empty_like(indices)


def _flops(metric_shape: tuple[int, ...], r: int, num_protected: int, **_: object) -> int:
    """2 |A| |B| C per image for the scores; the identity plan (r = 0) computes no scores."""
    batch, (tokens, channels) = metric_shape[0], metric_shape[-2:]
    even = (tokens + 1) // 2 - (num_protected + 1) // 2
    odd = tokens // 2 - num_protected // 2
    return 0 if r == 0 else 2 * batch * even * odd * channels


library.register(
    "bipartite_matching(Tensor metric, SymInt r, int num_protected)"
    " -> (Tensor indices, Tensor offsets, Tensor output_row)",
    reference=reference.bipartite_matching,
    fake=_fake,
    flops=_flops,
    triton="bipartite_soft_matching",
)


def _fake_from_keys(k: Tensor, r: int, num_protected: int) -> tuple[Tensor, Tensor, Tensor]:
    return _fake(k, r, num_protected)


def _flops_from_keys(k_shape: tuple[int, ...], r: int, num_protected: int, **_: object) -> int:
    """FLOPs of the matching; the mean has no products."""
    return _flops(k_shape, r, num_protected)


library.register(
    "bipartite_matching_from_keys(Tensor k, SymInt r, int num_protected)"
    " -> (Tensor indices, Tensor offsets, Tensor output_row)",
    reference=reference.bipartite_matching_from_keys,
    fake=_fake_from_keys,
    flops=_flops_from_keys,
    triton="bipartite_soft_matching",
)
library.register_cuda("bipartite_matching_cuda", library.OPS["bipartite_matching"])
library.register_cuda("bipartite_matching_from_keys_cuda", library.OPS["bipartite_matching_from_keys"])
