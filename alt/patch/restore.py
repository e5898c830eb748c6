"""Merged tokens copied back to the grid that they came from."""

from __future__ import annotations

import torch
from torch import Tensor

from alt_kernels import Matching, source_map, unmerge


def restore_grid(x: Tensor, matchings: list[Matching | None]) -> Tensor:
    """Returns ``x`` ``[B, n, C]`` after a chain of plans (None where nothing merged) at the N input tokens.

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
