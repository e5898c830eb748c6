"""Unmerge in plain torch: the definition and its derivative. Symbols as in weighted_merge.py."""

from __future__ import annotations

from torch import Tensor

from .weighted_merge import accumulate_dtype, check_plan, group_sum, take_rows


def unmerge(x: Tensor, indices: Tensor, offsets: Tensor, output_row: Tensor) -> Tensor:
    """y_i = x_{j(i)}: a copy of its row for every input token."""
    check_plan(indices, offsets, output_row)
    return take_rows(x, output_row)


def unmerge_backward(grad: Tensor, indices: Tensor, offsets: Tensor, output_row: Tensor) -> Tensor:
    """dx_j = sum_{i in G(j)} dy_i."""
    acc = accumulate_dtype(grad)
    return group_sum(grad.to(acc), output_row, offsets.shape[1] - 1).to(grad.dtype)
