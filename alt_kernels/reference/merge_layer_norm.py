"""Residual sum + weighted merge + LayerNorm in plain torch: the definition and its derivative.

Symbols as in weighted_merge.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .weighted_merge import accumulate_dtype, weighted_merge, weighted_merge_backward


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
