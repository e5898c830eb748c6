"""The operations of alt_kernels as short plain-torch graphs, for runtimes that have only standard operators.

They equal the references (``impl="reference"``) to rounding, for finite numbers. Instead of a plan of gathers they
carry the few indices that a merge needs: no sort of all tokens, no dense merging matrix.

Symbols: B images, N tokens, P protected, A and B the two sets of the matching, r merges, N' = N - r rows, C channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Merges", "assign", "attend", "match", "match_keys", "merge", "take"]


_TINY = 1e-30  # instead of dividing by zero


class Merges(NamedTuple):
    """What a merge needs of a plan, int64.

    own: ``[B, N']``, the input token that each output row is, apart from what merges into it.
    source: ``[B, r]``, the tokens that move. row: ``[B, r]``, the output rows that they move to, which may repeat.
    """

    own: Tensor
    source: Tensor
    row: Tensor


def match(metric: Tensor, r: int, num_protected: int) -> tuple[Merges, Tensor]:
    """Returns the merges of ``metric`` ``[B, N, C]``, for r >= 1, and the output row of every token, int32."""
    batch, tokens = metric.shape[:2]
    position = torch.arange(tokens, device=metric.device)
    first_even, first_odd = num_protected + num_protected % 2, num_protected + 1 - num_protected % 2
    even, odd = position[first_even::2], position[first_odd::2]
    x = _widen(metric)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    unit = x / length.clamp_min(_TINY)
    # The score of a row without a direction. NaN from a division by zero would do, but OpenVINO then merges padding.
    none = torch.where(length == 0, -torch.inf, 0.0).to(x.dtype).squeeze(-1)
    # One operation, because inductor's argmax of a sum names wrong columns (pytorch issue 178964).
    a, b = unit[:, first_even::2], unit[:, first_odd::2]
    best, partner = torch.baddbmm(none[:, None, first_odd::2], a, b.transpose(1, 2)).max(-1)
    best = best + none[:, first_even::2]
    # A stable sort, because among equals the lower index comes first. ONNX has TopK for it, which is stable.
    chosen, stays = best.argsort(dim=-1, descending=True, stable=True).split([r, len(even) - r], 1)
    stays = even[stays.topk(len(even) - r, dim=-1, largest=False).values]  # they ascend
    joined = partner.gather(1, chosen)
    own = torch.cat([position[:num_protected].expand(batch, -1), stays, odd.expand(batch, -1)], 1)
    merges = Merges(own, even[chosen], joined + (num_protected + len(even) - r))
    rows = position[: tokens - r].expand(batch, -1)
    output_row = position.expand(batch, -1).scatter(1, own, rows).scatter(1, merges.source, merges.row)
    return merges, output_row.to(torch.int32)


def match_keys(keys: Tensor, r: int, num_protected: int) -> tuple[Merges, Tensor]:
    """Returns :func:`match` of the mean over heads of ``keys`` ``[B, H, N, D]``."""
    return match(_widen(keys).mean(1), r, num_protected)


def take(x: Tensor, rows: Tensor) -> Tensor:
    """Returns ``x[b, rows[b, i]]`` by one gather of whole rows: ``[B, N, C]`` and ``[B, K]`` -> ``[B, K, C]``."""
    return x.flatten(0, 1).index_select(0, _flat(rows, x)).unflatten(0, (-1, rows.shape[1]))


def merge(x: Tensor, size: Tensor | None, merges: Merges) -> tuple[Tensor, Tensor]:
    """Returns x' ``[B, N', C]`` and s' ``[B, N']`` float32.

    With w_ij = s_j where token j moves to row i, and 0 elsewhere, s'_i = s_i + sum_j w_ij and
    x'_i = x_i + sum_j w_ij / s'_i (x_j - x_i). Rows that receive nothing are copied, and so is padding (s' = 0).
    The product with w has r columns. A scatter that adds would be shorter, but ONNX Runtime's loses sums of equal rows.
    """
    own, source, row = merges
    wide = _widen(x)
    place = torch.arange(own.shape[1], device=x.device)
    moves = row[:, None, :] == place[:, None]
    sizes = None if size is None else size.to(wide.dtype)
    share = moves.to(wide.dtype) if sizes is None else torch.where(moves, sizes.gather(1, source)[:, None, :], 0.0)
    moved = share.sum(-1)
    total = moved + (1 if sizes is None else sizes.gather(1, own))
    divisor = total.clamp_min(_TINY)
    kept = take(wide, own) * (1 - moved / divisor)[..., None]
    return (kept + share / divisor[..., None] @ take(wide, source)).to(x.dtype), total.float()


def attend(q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, scale: float) -> Tensor:
    """Returns ``softmax(scale q k^T + log s) v``, in steps that ONNX Runtime and OpenVINO join to their own attention.

    The exporter's form of ``scaled_dot_product_attention`` scales q and k apart and transposes k twice.
    """
    scores = (q * scale) @ k.transpose(-1, -2)
    scores = scores if size is None else scores + size.log()[:, None, None, :].to(q.dtype)
    return scores.softmax(-1) @ v


def assign(x: Tensor, entities: Tensor, tau: Tensor, noise: Tensor | None, hard: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the assigned entities ``[M, d]``, their numbers ``[M]`` and the log normalisers ``[M]``."""
    rows, columns = (F.normalize(_widen(t), dim=-1, eps=_TINY) for t in (x, entities))
    logits = rows @ columns.T / tau
    logits = logits if noise is None else logits + noise
    index = logits.argmax(-1)
    output = entities.index_select(0, index) if hard else logits.softmax(-1) @ entities.to(logits.dtype)
    return output.to(torch.promote_types(x.dtype, entities.dtype)), index, logits.logsumexp(-1)


def _widen(x: Tensor) -> Tensor:
    """Returns ``x`` in float32, or as it is in float64."""
    return x if x.dtype == torch.float64 else x.float()


def _flat(rows: Tensor, x: Tensor) -> Tensor:
    """Returns ``rows`` ``[B, K]`` of ``x`` ``[B, N, ...]`` as rows of its images one below the other: ``[B K]``."""
    start = torch.arange(x.shape[0], device=x.device)[:, None] * x.shape[1]
    return (rows + start).flatten()
