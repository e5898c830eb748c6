"""Bipartite soft matching in plain torch: the definition (ToMe, arXiv 2210.09461, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor


def unit_rows(metric: Tensor) -> tuple[Tensor, Tensor]:
    """Returns rows scaled to length one, in float32 (float64 for float64), and a mask of rows that have a direction.

    ``metric`` ``[..., C]`` -> unit ``[..., C]``, valid ``[...]`` bool. Each row is first divided by its largest
    magnitude, so that squares of a finite row neither overflow nor underflow. Rows of zeros and rows with a
    non-finite entry have no direction: they are zero and invalid.
    """
    x = metric.to(torch.float64 if metric.dtype == torch.float64 else torch.float32)
    peak = x.abs().amax(-1, keepdim=True)
    valid = torch.isfinite(peak) & (peak > 0)
    y = torch.where(valid, x / torch.where(valid, peak, 1.0), 0.0)
    norm = y.square().sum(-1, keepdim=True).sqrt()
    return y / torch.where(valid, norm, 1.0), valid.squeeze(-1)


def bipartite_matching(metric: Tensor, r: int, num_protected: int) -> tuple[Tensor, Tensor, Tensor]:
    """``metric`` ``[B, N, C]`` -> (indices ``[B, N]``, offsets ``[B, N - r + 1]``, output_row ``[B, N]``), int32."""
    batch, tokens, _ = metric.shape
    position = torch.arange(tokens, device=metric.device)
    if r == 0:
        identity = position.to(torch.int32).expand(batch, tokens).contiguous()
        ends = torch.arange(tokens + 1, device=metric.device, dtype=torch.int32)
        return identity, ends.expand(batch, tokens + 1).contiguous(), identity.clone()

    first_even = num_protected + num_protected % 2
    first_odd = num_protected + 1 - num_protected % 2
    a, b = position[first_even::2], position[first_odd::2]
    unit, valid = unit_rows(metric)
    score = unit[:, a] @ unit[:, b].transpose(1, 2)  # [B, |A|, |B|]
    score = score.masked_fill(~(valid[:, a, None] & valid[:, None, b]), -torch.inf)
    best = score.amax(-1)  # [B, |A|]
    # The lowest index of b among equals, which argmax does not guarantee on every device.
    column = torch.arange(len(b), device=metric.device)
    partner = torch.where(score == best[..., None], column, len(b)).amin(-1)
    # Higher score first, then lower index of a: a stable sort of the a's in ascending order.
    chosen = best.argsort(dim=-1, descending=True, stable=True)[:, :r]
    merged = torch.zeros_like(best, dtype=torch.bool).scatter(1, chosen, True)

    kept_rank = (~merged).long().cumsum(1) - 1
    row_of_b = num_protected + len(a) - r + column
    row_of_a = torch.where(merged, row_of_b[partner], num_protected + kept_rank)
    # Protected tokens, B and A, put back in the order of the tokens. Nothing is written in place, for torch.func.vmap.
    kept = torch.cat([position[:num_protected], row_of_b]).expand(batch, -1)
    order = torch.cat([position[:num_protected], b, a]).argsort()
    output_row = torch.cat([kept, row_of_a], 1)[:, order]
    first_in_group = torch.cat([torch.ones_like(kept, dtype=torch.bool), ~merged], 1)[:, order]
    return plan_from_rows(output_row, tokens - r, first_in_group)


def plan_from_rows(output_row: Tensor, rows: int, first_in_group: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Groups the tokens by output row, a row's own token first, then ascending."""
    batch, tokens = output_row.shape
    position = torch.arange(tokens, device=output_row.device)
    key = (output_row * 2 + (~first_in_group).long()) * tokens + position
    indices = key.argsort(dim=-1)
    count = output_row.new_zeros(batch, rows + 1).scatter_add(1, output_row + 1, torch.ones_like(output_row))
    return indices.to(torch.int32), count.cumsum(1).to(torch.int32), output_row.to(torch.int32)


def head_mean(k: Tensor) -> Tensor:
    """``[B, H, N, D]`` -> ``[B, N, D]``, in float32 (float64 for float64), since rounding would change the pairs."""
    return k.mean(1, dtype=torch.float64 if k.dtype == torch.float64 else torch.float32)


def bipartite_matching_from_keys(k: Tensor, r: int, num_protected: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the plan of the mean over heads of ``k`` ``[B, H, N, D]``."""
    return bipartite_matching(head_mean(k), r, num_protected)
