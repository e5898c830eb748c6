"""Where the input tokens are after a chain of plans, and copies of merged tokens back to the grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from alt_kernels import Impl, Matching, source_map, unmerge


def restore_grid(x: Tensor, matchings: list[Matching | None], impl: Impl) -> Tensor:
    """Copies ``x`` ``[B, n, C]``, merged by a chain of plans, back to the N input tokens.

    A plan is None where nothing merged. The chain is first composed into a single plan, so one pass suffices at any
    depth, and the gradient sums rows in a fixed order.
    """
    plans = [plan for plan in matchings if plan is not None]
    if not plans:
        return x
    if len(plans) == 1:
        return unmerge(x, plans[0], impl=impl)
    output_row = source_map(plans).to(torch.int32)
    rows, indices = output_row.sort(dim=1, stable=True)
    starts = torch.arange(x.shape[1] + 1, dtype=torch.int32, device=x.device)
    offsets = torch.searchsorted(rows, starts.expand(x.shape[0], -1).contiguous(), out_int32=True)
    return unmerge(x, Matching(indices.to(torch.int32), offsets, output_row), impl=impl)


def block_sources(plans: Sequence[Matching | None], finished: int, identity: Tensor) -> tuple[Tensor, ...]:
    """Returns the row of every input token after each of ``finished`` blocks, int ``[B, N]``.

    Args:
        plans: as in :class:`alt.patch.trunk.TrunkCall`.
        identity: int32 ``[B, N]``, the rows before the first plan.
    """
    rows = [identity]
    for count, plan in enumerate(plans, 1):
        rows.append(rows[-1] if plan is None else source_map([m for m in plans[:count] if m is not None]))
    return tuple(rows[len(rows) - finished :])
