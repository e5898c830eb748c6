"""Residual + merge + LayerNorm in one pass, and its derivative in two, in Triton; no atomics.

Symbols: B images, N input tokens, N' output rows, C channels, R rows a program works on, BC >= C its width,
G programs of the backward, a constant so that sums have the same order, hence the same bits, on every GPU.

Forward floor: reads x and residual, writes x' and its norm, 2 (N + N') C elements an image: less than residual + LN
without merging (4 N C). Backward: reads dx', dn and x', writes dx once for x and residual both.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tuning import config
from .weighted_merge import _unit_stride, refuse_double

PROGRAMS = 264  # G: two for each multiprocessor of the largest GPU we target


@triton.jit(do_not_specialize=["tokens", "rows"])
def _merge_norm(
    x_ptr,  # [B, N, C], strides (x_b, x_n, 1)
    residual_ptr,  # [B, N, C], strides (y_b, y_n, 1)
    size_ptr,  # [B, N] float32, read where HAS_SIZE
    indices_ptr,  # [B, N] int32
    offsets_ptr,  # [B, N' + 1] int32
    weight_ptr,  # [C], read where HAS_WEIGHT
    bias_ptr,  # [C], read where HAS_BIAS
    out_ptr,  # [B, N', C] contiguous
    normed_ptr,  # [B, N', C] contiguous
    out_size_ptr,  # [B, N'] float32
    mean_ptr,  # [B, N'] float32
    rstd_ptr,  # [B, N'] float32
    tokens,
    rows,
    x_b,
    x_n,
    y_b,
    y_n,
    eps,
    C: tl.constexpr,
    HAS_SIZE: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    R: tl.constexpr,
    BC: tl.constexpr,
):
    """One program: R output rows of one image, all channels."""
    image = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * R + tl.arange(0, R)
    live = row < rows
    channel = tl.arange(0, BC)
    in_width = channel < C
    first = tl.load(offsets_ptr + image * (rows + 1) + row, mask=live, other=0)
    last = tl.load(offsets_ptr + image * (rows + 1) + row + 1, mask=live, other=0)
    count = last - first

    token = tl.load(indices_ptr + image * tokens + first, mask=count > 0, other=0).to(tl.int64)
    tile = (count > 0)[:, None] & in_width[None, :]
    own = tl.load(x_ptr + image * x_b + token[:, None] * x_n + channel[None, :], mask=tile, other=0.0).to(tl.float32)
    own += tl.load(residual_ptr + image * y_b + token[:, None] * y_n + channel[None, :], mask=tile, other=0.0).to(
        tl.float32
    )
    if HAS_SIZE:
        weight = tl.load(size_ptr + image * tokens + token, mask=count > 0, other=0.0)
    else:
        weight = tl.where(count > 0, 1.0, 0.0)
    total = weight
    acc = own * weight[:, None]

    step = 1
    longest = tl.max(count, 0)
    while step < longest:
        more = step < count
        token = tl.load(indices_ptr + image * tokens + first + step, mask=more, other=0).to(tl.int64)
        tile = more[:, None] & in_width[None, :]
        part = tl.load(x_ptr + image * x_b + token[:, None] * x_n + channel[None, :], mask=tile, other=0.0).to(
            tl.float32
        )
        part += tl.load(residual_ptr + image * y_b + token[:, None] * y_n + channel[None, :], mask=tile, other=0.0).to(
            tl.float32
        )
        if HAS_SIZE:
            weight = tl.load(size_ptr + image * tokens + token, mask=more, other=0.0)
        else:
            weight = tl.where(more, 1.0, 0.0)
        total += weight
        acc += part * weight[:, None]
        step += 1

    nonzero = total != 0.0
    merged = tl.where(nonzero[:, None], acc / tl.where(nonzero, total, 1.0)[:, None], 0.0)
    merged = tl.where((count == 1)[:, None], own, merged).to(out_ptr.dtype.element_ty)
    target = (image * rows + row)[:, None] * C + channel[None, :]
    tile = live[:, None] & in_width[None, :]
    tl.store(out_ptr + target, merged, mask=tile)
    tl.store(out_size_ptr + image * rows + row, total, mask=live)

    # The norm is that of x' as stored: of the rounded value.
    value = tl.where(tile, merged.to(tl.float32), 0.0)
    mean = tl.sum(value, 1) / C
    centred = tl.where(tile, value - mean[:, None], 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / C + eps)
    normed = centred * rstd[:, None]
    if HAS_WEIGHT:
        normed = normed * tl.load(weight_ptr + channel, mask=in_width, other=0.0).to(tl.float32)[None, :]
    if HAS_BIAS:
        normed = normed + tl.load(bias_ptr + channel, mask=in_width, other=0.0).to(tl.float32)[None, :]
    tl.store(normed_ptr + target, normed.to(normed_ptr.dtype.element_ty), mask=tile)
    tl.store(mean_ptr + image * rows + row, mean, mask=live)
    tl.store(rstd_ptr + image * rows + row, rstd, mask=live)


@triton.jit(do_not_specialize=["batch", "tokens", "rows", "programs"])
def _merge_norm_backward(
    grad_merged_ptr,  # [B, N', C] contiguous
    grad_normed_ptr,  # [B, N', C] contiguous
    merged_ptr,  # [B, N', C] contiguous
    mean_ptr,  # [B, N']
    rstd_ptr,  # [B, N']
    weight_ptr,  # [C], read where HAS_WEIGHT
    size_ptr,  # [B, N], read where HAS_SIZE
    merged_size_ptr,  # [B, N']
    indices_ptr,  # [B, N] int32: tokens grouped by row
    offsets_ptr,  # [B, N' + 1] int32
    grad_ptr,  # [B, N, C] contiguous
    partial_weight_ptr,  # [G, C] float32, written where HAS_WEIGHT
    partial_bias_ptr,  # [G, C] float32, written where HAS_BIAS
    batch,
    tokens,
    rows,
    programs,
    C: tl.constexpr,
    HAS_SIZE: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    R: tl.constexpr,
    BC: tl.constexpr,
):
    """One program of G: every G-th tile of R output rows; writes dx of their tokens and one partial sum of dw, db."""
    program = tl.program_id(0)
    channel = tl.arange(0, BC)
    in_width = channel < C
    sum_weight = tl.zeros([BC], tl.float32)
    sum_bias = tl.zeros([BC], tl.float32)
    if HAS_WEIGHT:
        scale = tl.load(weight_ptr + channel, mask=in_width, other=0.0).to(tl.float32)
    tiles = tl.cdiv(rows, R)
    work = program.to(tl.int64)
    while work < batch * tiles:
        image = work // tiles
        row = (work % tiles) * R + tl.arange(0, R)
        live = row < rows
        tile = live[:, None] & in_width[None, :]
        at = (image * rows + row)[:, None] * C + channel[None, :]
        mean = tl.load(mean_ptr + image * rows + row, mask=live, other=0.0)
        rstd = tl.load(rstd_ptr + image * rows + row, mask=live, other=0.0)
        merged = tl.load(merged_ptr + at, mask=tile, other=0.0).to(tl.float32)
        dn = tl.load(grad_normed_ptr + at, mask=tile, other=0.0).to(tl.float32)
        h = tl.where(tile, (merged - mean[:, None]) * rstd[:, None], 0.0)
        if HAS_WEIGHT:
            g = dn * scale[None, :]
            sum_weight += tl.sum(dn * h, 0)
        else:
            g = dn
        if HAS_BIAS:
            sum_bias += tl.sum(dn, 0)
        along = (g - tl.sum(g, 1)[:, None] / C - h * (tl.sum(g * h, 1) / C)[:, None]) * rstd[:, None]
        total = along + tl.load(grad_merged_ptr + at, mask=tile, other=0.0).to(tl.float32)
        total = total.to(grad_ptr.dtype.element_ty)  # rounded as the reference rounds it, before the share

        first = tl.load(offsets_ptr + image * (rows + 1) + row, mask=live, other=0)
        last = tl.load(offsets_ptr + image * (rows + 1) + row + 1, mask=live, other=0)
        count = last - first
        group = tl.load(merged_size_ptr + image * rows + row, mask=live, other=0.0)
        nonzero = group != 0.0
        step = 0
        longest = tl.max(count, 0)
        while step < longest:
            member = step < count
            token = tl.load(indices_ptr + image * tokens + first + step, mask=member, other=0)
            if HAS_SIZE:
                weight = tl.load(size_ptr + image * tokens + token, mask=member, other=0.0)
            else:
                weight = tl.full([R], 1.0, tl.float32)
            share = tl.where(nonzero, weight / tl.where(nonzero, group, 1.0), 0.0)
            value = (total.to(tl.float32) * share[:, None]).to(total.dtype)
            value = tl.where((count == 1)[:, None], total, value)
            target = (image * tokens + token)[:, None] * C + channel[None, :]
            tl.store(grad_ptr + target, value, mask=member[:, None] & in_width[None, :])
            step += 1
        work += programs
    at = program.to(tl.int64) * C + channel
    if HAS_WEIGHT:
        tl.store(partial_weight_ptr + at, sum_weight, mask=in_width)
    if HAS_BIAS:
        tl.store(partial_bias_ptr + at, sum_bias, mask=in_width)


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
    refuse_double(x)
    refuse_double(residual)
    x, residual = _unit_stride(x), _unit_stride(residual)
    batch, tokens, channels = x.shape
    rows = offsets.shape[1] - 1
    out = x.new_empty((batch, rows, channels), dtype=torch.promote_types(x.dtype, residual.dtype))
    normed = torch.empty_like(out)
    merged_size = x.new_empty((batch, rows), dtype=torch.float32)
    mean, rstd = torch.empty_like(merged_size), torch.empty_like(merged_size)
    if out.numel() == 0:
        return out, normed, merged_size, mean, rstd
    tuned = config("weighted_merge", channels=channels)
    _merge_norm[(triton.cdiv(rows, tuned["R"]), batch)](
        x, residual, size.contiguous() if size is not None else x, indices.contiguous(), offsets.contiguous(),
        weight.contiguous() if weight is not None else x, bias.contiguous() if bias is not None else x,
        out, normed, merged_size, mean, rstd, tokens, rows,
        x.stride(0), x.stride(1), residual.stride(0), residual.stride(1), eps,
        C=channels, HAS_SIZE=size is not None, HAS_WEIGHT=weight is not None, HAS_BIAS=bias is not None,
        R=tuned["R"], BC=triton.next_power_of_2(channels), num_warps=tuned["num_warps"], num_stages=1,
    )  # fmt: skip
    return out, normed, merged_size, mean, rstd


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
    refuse_double(merged)
    batch, rows, channels = merged.shape
    tokens = output_row.shape[1]
    grad = merged.new_empty((batch, tokens, channels))
    absent = mean.new_zeros(0)
    if grad.numel() == 0:
        zeros = mean.new_zeros(channels)
        return grad, absent if weight is None else zeros, zeros.clone() if has_bias else absent.clone()
    tuned = config("weighted_merge", channels=channels)
    programs = min(PROGRAMS, batch * triton.cdiv(rows, tuned["R"]))
    partial_weight = mean.new_empty((programs, channels)) if weight is not None else mean
    partial_bias = mean.new_empty((programs, channels)) if has_bias else mean
    _merge_norm_backward[(programs,)](
        grad_merged.contiguous(), grad_normed.contiguous(), merged.contiguous(), mean.contiguous(), rstd.contiguous(),
        weight.contiguous() if weight is not None else merged, size.contiguous() if size is not None else merged,
        merged_size.contiguous(), indices.contiguous(), offsets.contiguous(), grad, partial_weight, partial_bias,
        batch, tokens, rows, programs,
        C=channels, HAS_SIZE=size is not None, HAS_WEIGHT=weight is not None, HAS_BIAS=has_bias,
        R=tuned["R"], BC=triton.next_power_of_2(channels), num_warps=tuned["num_warps"], num_stages=1,
    )  # fmt: skip
    # The sum over at most G partial rows, in a fixed order.
    grad_weight = partial_weight.sum(0) if weight is not None else absent
    return grad, grad_weight, partial_bias.sum(0) if has_bias else absent.clone()
