"""Weighted merge, unmerge and merge + LayerNorm in plain torch: the definitions and their derivatives.

Symbols: B images, N input tokens, N' output rows, C channels; s sizes, S sums of sizes, G(j) the tokens of row j.
Autograd differentiates the forwards. The ``*_backward`` functions state the same derivatives as formulas, which the
registered ops use where no kernel was compiled.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def accumulate_dtype(*tensors: Tensor | None) -> torch.dtype:
    """Returns the dtype of accumulation: float64 if any tensor is, else float32."""
    double = any(t is not None and t.dtype == torch.float64 for t in tensors)
    return torch.float64 if double else torch.float32


def check_plan(indices: Tensor, offsets: Tensor, output_row: Tensor) -> None:
    """Checks the values where that costs no synchronisation: plain tensors on the CPU, not while compiling."""
    if type(indices) is not Tensor or indices.device.type != "cpu" or torch.compiler.is_compiling():
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


def _take(x: Tensor, rows: Tensor) -> Tensor:
    """``x[b, rows[b, i]]`` bit for bit: ``[B, N, C]`` and ``[B, K]`` -> ``[B, K, C]``.

    It indexes, because torch.gather changes the payload of a half-precision NaN. A negative row is out of range and
    does not count from the end.
    """
    rows = rows.long()
    image = torch.arange(x.shape[0], device=x.device)[:, None]
    return x[image, torch.where(rows < 0, x.shape[1], rows)]


def _group_sum(x: Tensor, output_row: Tensor, rows: int) -> Tensor:
    """``x`` ``[B, N, C]`` -> ``[B, N', C]``: the sum over the tokens of each row."""
    zeros = x.new_zeros(x.shape[0], rows, x.shape[2])
    return zeros.scatter_add(1, _rows(output_row, x), x)


def _merged_size(size: Tensor | None, offsets: Tensor, output_row: Tensor) -> Tensor:
    if size is None:
        return offsets.diff(dim=1).to(torch.float32)
    return _group_sum(size[..., None], output_row, offsets.shape[1] - 1)[..., 0]


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
    mean = _group_sum(weighted, output_row, rows) / torch.where(total != 0, total, 1.0)
    mean = torch.where(total != 0, mean, 0.0).to(x.dtype)
    own = _take(x, indices.gather(1, offsets[:, :-1].long()))
    single = (offsets.diff(dim=1) == 1)[..., None]
    return torch.where(single, own, mean), merged_size


def weighted_merge_backward(
    grad: Tensor, size: Tensor | None, merged_size: Tensor, indices: Tensor, offsets: Tensor, output_row: Tensor
) -> Tensor:
    """dx_i = (s_i / S_j) dx'_j for i in G(j); exactly dx'_j where j has one token."""
    acc = accumulate_dtype(grad)
    per_token = _take(grad, output_row)
    row = output_row.long()
    total = merged_size.gather(1, row).to(acc)
    share = (torch.ones_like(total) if size is None else size.to(acc)) / torch.where(total != 0, total, 1.0)
    share = torch.where(total != 0, share, 0.0)
    single = (offsets.diff(dim=1) == 1).gather(1, row)
    weighted = (per_token.to(acc) * share[..., None]).to(grad.dtype)
    return torch.where(single[..., None], per_token, weighted)


def unmerge(x: Tensor, indices: Tensor, offsets: Tensor, output_row: Tensor) -> Tensor:
    """y_i = x_{j(i)}: a copy of its row for every input token."""
    check_plan(indices, offsets, output_row)
    return _take(x, output_row)


def unmerge_backward(grad: Tensor, indices: Tensor, offsets: Tensor, output_row: Tensor) -> Tensor:
    """dx_j = sum_{i in G(j)} dy_i."""
    acc = accumulate_dtype(grad)
    return _group_sum(grad.to(acc), output_row, offsets.shape[1] - 1).to(grad.dtype)


def merge_layer_norm(
    x: Tensor,
    residual: Tensor,
    size: Tensor | None,
    indices: Tensor,
    offsets: Tensor,
    output_row: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x' = merge(x + residual), rounded once; normed = LayerNorm(x') of the x' as stored."""
    out = torch.promote_types(x.dtype, residual.dtype)
    acc = torch.float64 if out == torch.float64 else torch.float32
    summed = x.to(acc) + residual.to(acc)
    merged, merged_size = weighted_merge(summed, size, indices, offsets, output_row)
    merged = merged.to(out)
    y = merged.to(acc)
    mean = y.mean(-1)
    centred = y - mean[..., None]
    rstd = (centred.square().mean(-1) + eps).rsqrt()
    normed = F.layer_norm(
        y,
        (y.shape[-1],),
        None if weight is None else weight.to(acc),
        None if bias is None else bias.to(acc),
        eps,
    )
    return merged, normed.to(out), merged_size, mean, rstd


def merge_layer_norm_backward(
    grad_merged: Tensor,
    grad_normed: Tensor,
    merged: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    has_bias: bool,
    size: Tensor | None,
    merged_size: Tensor,
    indices: Tensor,
    offsets: Tensor,
    output_row: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """With h = (x' - mean) rstd and g = dn * w: dx' = dm + rstd (g - mean_C(g) - h mean_C(g h)), then as in merge.

    The gradient of ``x`` and of ``residual`` is the same tensor. dw = sum dn h, db = sum dn over images and rows.
    """
    acc = accumulate_dtype(merged)
    h = (merged.to(acc) - mean[..., None]) * rstd[..., None]
    dn = grad_normed.to(acc)
    g = dn if weight is None else dn * weight.to(acc)
    along = (g - g.mean(-1, keepdim=True) - h * (g * h).mean(-1, keepdim=True)) * rstd[..., None]
    total = (grad_merged.to(acc) + along).to(merged.dtype)
    grad_input = weighted_merge_backward(total, size, merged_size, indices, offsets, output_row)
    nothing = merged.new_zeros(0, dtype=acc)
    grad_weight = nothing if weight is None else (dn * h).sum((0, 1))
    grad_bias = dn.sum((0, 1)) if has_bias else nothing.clone()
    return grad_input, grad_weight, grad_bias
