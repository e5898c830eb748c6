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

__all__ = ["Merges", "assign", "attend", "match", "merge", "normalised_rows", "take"]


_TINY = 1e-30  # instead of dividing by zero


class Merges(NamedTuple):
    """What a merge needs of a plan, int64.

    own: ``[B, N']``, the input token that each output row is, apart from what merges into it.
    source, target: ``[B, r]``, the tokens that move, and the tokens that they move to. row: ``[B, r]``, the output
    rows of the targets. Targets may repeat.
    """

    own: Tensor
    source: Tensor
    target: Tensor
    row: Tensor


def match(metric: Tensor, r: int, num_protected: int) -> tuple[Merges, Tensor]:
    """Returns the merges of ``metric`` ``[B, N, C]``, for r >= 1, and the output row of every token, int32."""
    batch, tokens = metric.shape[:2]
    first_even, first_odd = num_protected + num_protected % 2, num_protected + 1 - num_protected % 2
    unit, no_direction = normalised_rows(metric)
    score = unit[:, first_even::2] @ unit[:, first_odd::2].transpose(1, 2) + no_direction[:, None, first_odd::2]
    best, partner = score.max(-1)
    # A stable sort, because among equals the lower index comes first. ONNX has TopK for it, which is stable.
    order = (best + no_direction[:, first_even::2]).argsort(dim=-1, descending=True, stable=True)
    evens = best.shape[1]
    chosen, stays = order[:, :r], order[:, r:].topk(evens - r, dim=-1, largest=False).values  # those that stay ascend
    position = torch.arange(tokens, device=metric.device)
    fixed = [part.expand(batch, -1) for part in (position[:num_protected], position[first_odd::2])]
    own = torch.cat([fixed[0], first_even + 2 * stays, fixed[1]], 1)
    joined = partner.gather(1, chosen)
    merges = Merges(own, first_even + 2 * chosen, first_odd + 2 * joined, num_protected + evens - r + joined)
    rows = torch.arange(tokens - r, device=metric.device).expand(batch, -1)
    output_row = position.expand(batch, -1).scatter(1, own, rows).scatter(1, merges.source, merges.row)
    return merges, output_row.to(torch.int32)


def normalised_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns rows of length one in float32 or better, and 0, or -inf for a row of zeros, which stays zero."""
    x = x if x.dtype == torch.float64 else x.float()
    length = torch.linalg.vector_norm(x, dim=-1)
    return x / length.clamp_min(_TINY)[..., None], torch.where(length == 0, -torch.inf, 0.0).to(x.dtype)


def take(x: Tensor, rows: Tensor) -> Tensor:
    """Returns ``x[b, rows[b, i]]`` by one gather of whole rows: ``[B, N, C]`` and ``[B, K]`` -> ``[B, K, C]``."""
    return x.flatten(0, 1).index_select(0, _flat(rows, x)).unflatten(0, (-1, rows.shape[1]))


def merge(x: Tensor, size: Tensor | None, merges: Merges) -> tuple[Tensor, Tensor]:
    """Returns x' ``[B, N', C]`` and s' ``[B, N']`` float32. Only the rows that receive are computed, others copied."""
    own, source, target, row = merges
    wide = x if x.dtype == torch.float64 else x.float()
    sizes = torch.ones_like(wide[..., 0]) if size is None else size.to(wide.dtype)
    moving, still = sizes.gather(1, source), sizes.gather(1, target)
    # Row k is the target of token k with every token that moves to it; equal targets give equal rows.
    share = torch.where(target[:, :, None] == target[:, None, :], moving[:, None, :], 0.0)
    total = still + share.sum(-1)
    weighted = take(wide, target) * still[..., None] + share @ take(wide, source)
    mean = weighted / total.clamp_min(_TINY)[..., None]  # a group of padding has size 0 and gives zeros
    flat = take(x, own).flatten(0, 1).index_put((_flat(row, own),), mean.to(x.dtype).flatten(0, 1))
    return flat.unflatten(0, (-1, own.shape[1])), sizes.gather(1, own).scatter(1, row, total).float()


def attend(q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, scale: float) -> Tensor:
    """Returns ``softmax(q k^T scale + log s) v``."""
    bias = None if size is None else size.log()[:, None, None, :].to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, bias, scale=scale)


def assign(x: Tensor, entities: Tensor, tau: Tensor, noise: Tensor | None, hard: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the assigned entities ``[M, d]``, their numbers ``[M]`` and the log normalisers ``[M]``."""
    logits = normalised_rows(x)[0] @ normalised_rows(entities)[0].T / tau
    logits = logits if noise is None else logits + noise
    index = logits.argmax(-1)
    output = entities.index_select(0, index) if hard else logits.softmax(-1) @ entities.to(logits.dtype)
    return output.to(torch.promote_types(x.dtype, entities.dtype)), index, logits.logsumexp(-1)


def _flat(rows: Tensor, x: Tensor) -> Tensor:
    """Returns ``rows`` ``[B, K]`` of ``x`` ``[B, N, ...]`` as rows of its images one below the other: ``[B K]``."""
    start = torch.arange(x.shape[0], device=x.device)[:, None] * x.shape[1]
    return (rows + start).flatten()
