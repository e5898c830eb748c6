"""Weighted merge in plain torch: the definition and its derivative, and the steps it shares with its neighbours.

Symbols: B images, N input tokens, N' output rows, C channels; s sizes, S sums of sizes, G(j) the tokens of row j.
Autograd differentiates the forwards. The ``*_backward`` functions state the same derivatives as formulas, which the
registered ops use where no kernel was compiled.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import is_readable


def accumulate_dtype(*tensors: Tensor | None) -> torch.dtype:
    """Returns the dtype of accumulation: float64 if any tensor is, else float32."""
    double = any(t is not None and t.dtype == torch.float64 for t in tensors)
    return torch.float64 if double else torch.float32


def check_plan(indices: Tensor, offsets: Tensor, output_row: Tensor) -> None:
    """Raises if the values can be read and are no plan."""
    if not (is_readable(indices) and is_readable(offsets) and is_readable(output_row)):
        return
    tokens, rows = indices.shape[1], offsets.shape[1] - 1
    for name, value, count in (("indices", indices, tokens), ("output_row", output_row, rows)):
        wrong = (value < 0) | (value >= count)
        if wrong.any():
            got = value[wrong][0].item()
            raise ValueError(f"matching.{name}: expected values from 0 to {count - 1}, got {got}")
    rising = (offsets.diff(dim=1) > 0).all(1) & (offsets[:, 0] == 0) & (offsets[:, -1] == tokens)
    if not rising.all():
        row = offsets[~rising][0].tolist()
        raise ValueError(
            f"matching.offsets: expected values that rise strictly from 0 to {tokens}, got {row[:4]} ... {row[-1]}"
        )


def _rows(output_row: Tensor, like: Tensor) -> Tensor:
    """``[B, N]`` int32 -> ``[B, N, C]`` int64, an index for scatter along tokens."""
    return output_row.long()[..., None].expand(-1, -1, like.shape[-1])


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """``x[b, rows[b, i]]`` bit for bit: ``[B, N, C]`` and ``[B, K]`` -> ``[B, K, C]``.

    It indexes, because torch.gather changes the payload of a half-precision NaN. A negative row is out of range and
    does not count from the end.
    """
    rows = rows.long()
    image = torch.arange(x.shape[0], device=x.device)[:, None]
    return x[image, torch.where(rows < 0, x.shape[1], rows)]


def group_sum(x: Tensor, output_row: Tensor, rows: int) -> Tensor:
    """``x`` ``[B, N, C]`` -> ``[B, N', C]``: the sum over the tokens of each row."""
    zeros = x.new_zeros(x.shape[0], rows, x.shape[2])
    return zeros.scatter_add(1, _rows(output_row, x), x)


def _merged_size(size: Tensor | None, offsets: Tensor, output_row: Tensor) -> Tensor:
    if size is None:
        return offsets.diff(dim=1).to(torch.float32)
    return group_sum(size[..., None], output_row, offsets.shape[1] - 1)[..., 0]


def weighted_merge(
    x: Tensor, size: Tensor | None, indices: Tensor, offsets: Tensor, output_row: Tensor
) -> tuple[Tensor, Tensor]:
    """x'_j = sum_{i in G(j)} s_i x_i / S_j, S_j = sum_{i in G(j)} s_i; a row of one token is a copy of it."""
    check_plan(indices, offsets, output_row)
    rows = offsets.shape[1] - 1
    acc = accumulate_dtype(x)
    merged_size = _merged_size(size, offsets, output_row)
    weighted = x.to(acc) if size is None else x.to(acc) * size[..., None].to(acc)
    total = merged_size[..., None].to(acc)
    mean = group_sum(weighted, output_row, rows) / torch.where(total != 0, total, 1.0)
    mean = torch.where(total != 0, mean, 0.0).to(x.dtype)
    own = take_rows(x, indices.gather(1, offsets[:, :-1].long()))
    single = (offsets.diff(dim=1) == 1)[..., None]
    return torch.where(single, own, mean), merged_size


def weighted_merge_backward(
    grad: Tensor, size: Tensor | None, merged_size: Tensor, indices: Tensor, offsets: Tensor, output_row: Tensor
) -> Tensor:
    """dx_i = (s_i / S_j) dx'_j for i in G(j); exactly dx'_j where j has one token."""
    acc = accumulate_dtype(grad)
    per_token = take_rows(grad, output_row)
    row = output_row.long()
    total = merged_size.gather(1, row).to(acc)
    share = (torch.ones_like(total) if size is None else size.to(acc)) / torch.where(total != 0, total, 1.0)
    share = torch.where(total != 0, share, 0.0)
    single = (offsets.diff(dim=1) == 1).gather(1, row)
    weighted = (per_token.to(acc) * share[..., None]).to(grad.dtype)
    return torch.where(single[..., None], per_token, weighted)
