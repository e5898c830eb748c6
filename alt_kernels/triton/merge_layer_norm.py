"""Residual sum + merge + LayerNorm in one launch, and its derivative in two, in Triton, without atomics.

Symbols: B images, N input tokens, N' output rows, C channels, R rows per program, BC >= C their width, G programs of
the backward. G is a constant of the configuration, so the order of the sums over all rows, and their bits, depend on
the shape alone.

Forward floor: reads x and residual, writes x' and its norm, 2 (N + N') C elements per image. This is less than
residual + LN without merging (4 N C). Backward: reads dx', dn and x' (3 N' C), writes dx once for x and residual (N C).

The values of a plan are not checked: reading them back would stall the GPU.
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from .host import divide_up, refuse_double, round_up_to_power, unit_stride
from .launch import cache_launches
from .launch_configs import config

SUM_ROWS, SUM_CHANNELS = 64, 32  # the tile that adds the G partial sums, 128 bytes of a row at a time


@cache_launches(do_not_specialize=["tokens", "rows"])
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
    tiles = tl.cdiv(rows, R)
    image = (tl.program_id(0) // tiles).to(tl.int64)  # a 1-D grid: other dimensions are limited to 65,535 programs
    row = (tl.program_id(0) % tiles) * R + tl.arange(0, R)
    live = row < rows
    channel = tl.arange(0, BC)
    in_width = channel < C
    first = tl.load(offsets_ptr + image * (rows + 1) + row, mask=live, other=0)
    last = tl.load(offsets_ptr + image * (rows + 1) + row + 1, mask=live, other=0)
    count = last - first  # [R]

    token = tl.load(indices_ptr + image * tokens + first, mask=live, other=0).to(tl.int64)
    tile = live[:, None] & in_width[None, :]
    own = tl.load(x_ptr + image * x_b + token[:, None] * x_n + channel[None, :], mask=tile, other=0.0).to(tl.float32)
    own += tl.load(residual_ptr + image * y_b + token[:, None] * y_n + channel[None, :], mask=tile, other=0.0).to(
        tl.float32
    )  # [R, BC]
    merged = own  # a row of one token is neither multiplied nor divided
    if HAS_SIZE:
        weight = tl.load(size_ptr + image * tokens + token, mask=live, other=0.0)
    else:
        weight = tl.full([R], 1.0, tl.float32)
    total = weight  # [R]

    longest = tl.max(count, 0)
    if longest > 1:  # groups of several tokens, which most tiles lack
        single = count == 1
        acc = own * tl.where(single, 1.0, weight)[:, None]
        step = 1
        while step < longest:
            more = step < count
            token = tl.load(indices_ptr + image * tokens + first + step, mask=more, other=0).to(tl.int64)
            part_tile = more[:, None] & in_width[None, :]
            at = token[:, None] * x_n + channel[None, :]
            part = tl.load(x_ptr + image * x_b + at, mask=part_tile, other=0.0).to(tl.float32)
            at = token[:, None] * y_n + channel[None, :]
            part += tl.load(residual_ptr + image * y_b + at, mask=part_tile, other=0.0).to(tl.float32)
            if HAS_SIZE:
                weight = tl.load(size_ptr + image * tokens + token, mask=more, other=0.0)
            else:
                weight = tl.where(more, 1.0, 0.0)
            total += weight
            acc += part * tl.where(more, weight, -1.0)[:, None]  # adds -0 past a group's end: no change
            step += 1
        nonzero = total != 0.0
        # A product with 1 is exact, so a row of one token among groups needs no separate tile.
        inverse = tl.where(single, 1.0, 1.0 / tl.where(nonzero, total, 1.0))
        merged = tl.where((single | nonzero)[:, None], acc * inverse[:, None], 0.0)

    stored = merged.to(out_ptr.dtype.element_ty)
    target = (image * rows + row)[:, None] * C + channel[None, :]
    tl.store(out_ptr + target, stored, mask=tile)
    tl.store(out_size_ptr + image * rows + row, total, mask=live)

    value = stored.to(tl.float32)  # the norm is that of x' as stored; 0 past the width
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


@cache_launches(do_not_specialize=["batch", "tokens", "rows", "programs"])
def _merge_norm_backward(
    grad_merged_ptr,  # [B, N', C] contiguous
    grad_normed_ptr,  # [B, N', C] contiguous
    merged_ptr,  # [B, N', C] contiguous
    mean_ptr,  # [B, N'] float32
    rstd_ptr,  # [B, N'] float32
    weight_ptr,  # [C], read where HAS_WEIGHT
    size_ptr,  # [B, N] float32, read where HAS_SIZE
    merged_size_ptr,  # [B, N'] float32
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
    BC: tl.constexpr,
):
    """One program of G: every G-th row of all images. Writes dx of its tokens and the program's sums for dw and db."""
    program = tl.program_id(0)
    channel = tl.arange(0, BC)
    in_width = channel < C
    sum_weight = tl.zeros([BC], tl.float32)
    sum_bias = tl.zeros([BC], tl.float32)
    if HAS_WEIGHT:
        scale = tl.load(weight_ptr + channel, mask=in_width, other=0.0).to(tl.float32)
    total_rows = batch * rows

    # Prefetch the next row: the sums of the current one are barriers, across which the compiler moves no read.
    work = program
    at = work.to(tl.int64)
    merged_next = tl.load(merged_ptr + at * C + channel, mask=in_width, other=0.0)  # [BC]
    dn_next = tl.load(grad_normed_ptr + at * C + channel, mask=in_width, other=0.0)
    dm_next = tl.load(grad_merged_ptr + at * C + channel, mask=in_width, other=0.0)
    mean_next = tl.load(mean_ptr + at)
    rstd_next = tl.load(rstd_ptr + at)
    while work < total_rows:
        merged, dn, dm = merged_next.to(tl.float32), dn_next.to(tl.float32), dm_next.to(tl.float32)
        mean, rstd = mean_next, rstd_next
        image = (work // rows).to(tl.int64)
        at = work.to(tl.int64)
        first = tl.load(offsets_ptr + at + image)  # image * (rows + 1) + row
        last = tl.load(offsets_ptr + at + image + 1)
        token = tl.load(indices_ptr + image * tokens + first).to(tl.int64)
        group = tl.load(merged_size_ptr + at)
        weight = 1.0
        if HAS_SIZE:
            weight = tl.load(size_ptr + image * tokens + token)
        work += programs
        at = work.to(tl.int64)
        more = work < total_rows
        merged_next = tl.load(merged_ptr + at * C + channel, mask=in_width & more, other=0.0)
        dn_next = tl.load(grad_normed_ptr + at * C + channel, mask=in_width & more, other=0.0)
        dm_next = tl.load(grad_merged_ptr + at * C + channel, mask=in_width & more, other=0.0)
        mean_next = tl.load(mean_ptr + at, mask=more, other=0.0)
        rstd_next = tl.load(rstd_ptr + at, mask=more, other=0.0)

        h = (merged - mean) * rstd  # not 0 past the width, but dn and g are
        g = dn
        if HAS_WEIGHT:
            g = dn * scale
            sum_weight += dn * h
        if HAS_BIAS:
            sum_bias += dn
        along = (g - tl.sum(g, 0) / C - h * (tl.sum(g * h, 0) / C)) * rstd
        total = (dm + along).to(grad_ptr.dtype.element_ty)  # rounded before the share, as in the reference

        place = first
        while token >= 0:  # the compiler would unroll `place < last`, which costs registers
            share = tl.where(group != 0.0, weight / tl.where(group != 0.0, group, 1.0), 0.0)
            share = tl.where(last - first == 1, 1.0, share)  # exact: the derivative of a copy is a copy
            value = (total.to(tl.float32) * share).to(total.dtype)
            tl.store(grad_ptr + (image * tokens + token) * C + channel, value, mask=in_width)
            place += 1
            token = tl.load(indices_ptr + image * tokens + place, mask=place < last, other=-1).to(tl.int64)
            if HAS_SIZE:
                weight = tl.load(size_ptr + image * tokens + token, mask=place < last, other=0.0)
    at = program.to(tl.int64) * C + channel
    if HAS_WEIGHT:
        tl.store(partial_weight_ptr + at, sum_weight, mask=in_width)
    if HAS_BIAS:
        tl.store(partial_bias_ptr + at, sum_bias, mask=in_width)


@cache_launches(do_not_specialize=["programs"])
def _sum_partials(
    partial_weight_ptr,  # [G, C] float32, read where HAS_WEIGHT
    partial_bias_ptr,  # [G, C] float32, read where HAS_BIAS
    grad_weight_ptr,  # [C] float32
    grad_bias_ptr,  # [C] float32
    programs,
    C: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    R: tl.constexpr,
    BC: tl.constexpr,
):
    """One program: BC channels of dw and db, summed over the G partial rows in order, R at a time."""
    channel = tl.program_id(0) * BC + tl.arange(0, BC)
    in_width = channel < C
    sum_weight = tl.zeros([R, BC], tl.float32)
    sum_bias = tl.zeros([R, BC], tl.float32)
    start = 0
    while start < programs:
        row = start + tl.arange(0, R)
        at = row[:, None] * C + channel[None, :]
        tile = (row < programs)[:, None] & in_width[None, :]
        if HAS_WEIGHT:
            sum_weight += tl.load(partial_weight_ptr + at, mask=tile, other=0.0)
        if HAS_BIAS:
            sum_bias += tl.load(partial_bias_ptr + at, mask=tile, other=0.0)
        start += R
    if HAS_WEIGHT:
        tl.store(grad_weight_ptr + channel, tl.sum(sum_weight, 0), mask=in_width)
    if HAS_BIAS:
        tl.store(grad_bias_ptr + channel, tl.sum(sum_bias, 0), mask=in_width)


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
    """Returns x' = merge(x + residual), its LayerNorm, S, and the mean and 1/deviation ``[B, N']`` float32."""
    refuse_double(x)
    refuse_double(residual)
    x, residual = unit_stride(x), unit_stride(residual)
    batch, tokens, channels = x.shape
    rows = offsets.shape[1] - 1
    out = x.new_empty(batch, rows, channels, dtype=torch.promote_types(x.dtype, residual.dtype))
    normed = torch.empty_like(out)
    merged_size = x.new_empty(batch, rows, dtype=torch.float32)
    mean, rstd = torch.empty_like(merged_size), torch.empty_like(merged_size)
    if batch * rows == 0:
        return out, normed, merged_size, mean, rstd
    width = round_up_to_power(channels)
    x_b, x_n, _ = x.stride()
    y_b, y_n, _ = residual.stride()
    tuned = config("merge_layer_norm", channels=width)
    _merge_norm[(batch * divide_up(rows, tuned["R"]),)](
        x, residual, size.contiguous() if size is not None else x, indices.contiguous(), offsets.contiguous(),
        weight.contiguous() if weight is not None else x, bias.contiguous() if bias is not None else x,
        out, normed, merged_size, mean, rstd, tokens, rows, x_b, x_n, y_b, y_n, eps,
        C=channels, HAS_SIZE=size is not None, HAS_WEIGHT=weight is not None, HAS_BIAS=bias is not None,
        R=tuned["R"], BC=width, num_warps=tuned["num_warps"], num_stages=1,
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
    """Returns dx ``[B, N, C]`` of both x and residual, and dw, db ``[C]`` float32 (``[0]`` if there is none).

    Each row's derivative is computed once and written to all of its tokens, which ``indices`` gives.
    """
    refuse_double(merged)
    batch, rows, channels = merged.shape
    tokens = output_row.shape[1]
    grad = merged.new_empty(batch, tokens, channels)
    has_weight = weight is not None
    if batch * rows == 0:
        return grad, mean.new_zeros(channels if has_weight else 0), mean.new_zeros(channels if has_bias else 0)
    grad_weight = mean.new_empty(channels if has_weight else 0)
    grad_bias = mean.new_empty(channels if has_bias else 0)
    width = round_up_to_power(channels)
    tuned = config("merge_layer_norm_backward", channels=width)
    programs = min(tuned["programs"], batch * rows)
    partial_weight = mean.new_empty((programs, channels)) if has_weight else mean
    partial_bias = mean.new_empty((programs, channels)) if has_bias else mean
    _merge_norm_backward[(programs,)](
        grad_merged.contiguous(), grad_normed.contiguous(), merged.contiguous(), mean.contiguous(), rstd.contiguous(),
        weight.contiguous() if has_weight else merged, size.contiguous() if size is not None else mean,
        merged_size.contiguous(), indices.contiguous(), offsets.contiguous(), grad, partial_weight, partial_bias,
        batch, tokens, rows, programs,
        C=channels, HAS_SIZE=size is not None, HAS_WEIGHT=has_weight, HAS_BIAS=has_bias,
        BC=width, num_warps=tuned["num_warps"], num_stages=1,
    )  # fmt: skip
    if has_weight or has_bias:
        _sum_partials[(divide_up(channels, SUM_CHANNELS),)](
            partial_weight, partial_bias, grad_weight if has_weight else mean, grad_bias if has_bias else mean,
            programs, C=channels, HAS_WEIGHT=has_weight, HAS_BIAS=has_bias, R=SUM_ROWS, BC=SUM_CHANNELS,
            num_warps=4, num_stages=1,
        )  # fmt: skip
    return grad, grad_weight, grad_bias
