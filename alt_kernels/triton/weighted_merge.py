"""Merge, unmerge and their derivatives in Triton: two kernels over a plan of gathers, no atomics.

Symbols: B images, N input tokens, N' output rows, C channels, R rows a program works on, BC >= C its width.

``_reduce_rows`` goes from tokens to rows (merge, and the derivative of unmerge), ``_spread_rows`` from rows to
tokens (unmerge, and the derivative of merge). Both read and write every element once: floor (N + N') C elements an
image. Most rows have one token, so a tile of R rows loads R tokens and then loops over what its largest group has left.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tuning import config


@triton.jit(do_not_specialize=["tokens", "rows"])
def _reduce_rows(
    x_ptr,  # [B, N, C], strides (x_b, x_n, 1)
    size_ptr,  # [B, N] float32, read where HAS_SIZE
    indices_ptr,  # [B, N] int32
    offsets_ptr,  # [B, N' + 1] int32
    out_ptr,  # [B, N', C] contiguous
    out_size_ptr,  # [B, N'] float32, written where MEAN
    tokens,
    rows,
    x_b,
    x_n,
    C: tl.constexpr,
    HAS_SIZE: tl.constexpr,
    MEAN: tl.constexpr,  # size-weighted mean (merge); otherwise the plain sum (derivative of unmerge)
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

    token = tl.load(indices_ptr + image * tokens + first, mask=count > 0, other=0)
    tile = (count > 0)[:, None] & in_width[None, :]
    own = tl.load(x_ptr + image * x_b + token.to(tl.int64)[:, None] * x_n + channel[None, :], mask=tile, other=0.0)
    if HAS_SIZE:
        weight = tl.load(size_ptr + image * tokens + token, mask=count > 0, other=0.0)
    else:
        weight = tl.where(count > 0, 1.0, 0.0)
    total = weight
    acc = own.to(tl.float32)
    if MEAN:
        acc = acc * weight[:, None]

    # What the largest group of this tile has beside each row's own token: for most tiles nothing.
    step = 1
    longest = tl.max(count, 0)
    while step < longest:
        more = step < count
        token = tl.load(indices_ptr + image * tokens + first + step, mask=more, other=0)
        tile = more[:, None] & in_width[None, :]
        part = tl.load(x_ptr + image * x_b + token.to(tl.int64)[:, None] * x_n + channel[None, :], mask=tile, other=0.0)
        part = part.to(tl.float32)
        if MEAN:
            if HAS_SIZE:
                weight = tl.load(size_ptr + image * tokens + token, mask=more, other=0.0)
            else:
                weight = tl.where(more, 1.0, 0.0)
            total += weight
            part = part * weight[:, None]
        acc += part
        step += 1

    if MEAN:
        nonzero = total != 0.0
        acc = tl.where(nonzero[:, None], acc / tl.where(nonzero, total, 1.0)[:, None], 0.0)
        tl.store(out_size_ptr + image * rows + row, total, mask=live)
    # A row of one token is its copy, bit for bit: no product and quotient may round it.
    out = tl.where((count == 1)[:, None], own, acc.to(own.dtype))
    target = out_ptr + (image * rows + row)[:, None] * C + channel[None, :]
    tl.store(target, out, mask=live[:, None] & in_width[None, :])


@triton.jit(do_not_specialize=["tokens", "rows"])
def _spread_rows(
    x_ptr,  # [B, N', C], strides (x_b, x_n, 1)
    size_ptr,  # [B, N] float32, read where SHARE and HAS_SIZE
    merged_size_ptr,  # [B, N'] float32, read where SHARE
    offsets_ptr,  # [B, N' + 1] int32, read where SHARE
    output_row_ptr,  # [B, N] int32
    out_ptr,  # [B, N, C] contiguous
    tokens,
    rows,
    x_b,
    x_n,
    C: tl.constexpr,
    HAS_SIZE: tl.constexpr,
    SHARE: tl.constexpr,  # times s_i / S_j (derivative of merge); otherwise a copy (unmerge)
    R: tl.constexpr,
    BC: tl.constexpr,
):
    """One program: R input tokens of one image, all channels."""
    image = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * R + tl.arange(0, R)
    live = token < tokens
    channel = tl.arange(0, BC)
    tile = live[:, None] & (channel < C)[None, :]
    row = tl.load(output_row_ptr + image * tokens + token, mask=live, other=0)
    value = tl.load(x_ptr + image * x_b + row.to(tl.int64)[:, None] * x_n + channel[None, :], mask=tile, other=0.0)
    if SHARE:
        first = tl.load(offsets_ptr + image * (rows + 1) + row, mask=live, other=0)
        last = tl.load(offsets_ptr + image * (rows + 1) + row + 1, mask=live, other=0)
        total = tl.load(merged_size_ptr + image * rows + row, mask=live, other=0.0)
        if HAS_SIZE:
            weight = tl.load(size_ptr + image * tokens + token, mask=live, other=0.0)
        else:
            weight = tl.full([R], 1.0, tl.float32)
        nonzero = total != 0.0
        share = tl.where(nonzero, weight / tl.where(nonzero, total, 1.0), 0.0)
        scaled = (value.to(tl.float32) * share[:, None]).to(value.dtype)
        value = tl.where((last - first == 1)[:, None], value, scaled)
    tl.store(out_ptr + (image * tokens + token)[:, None] * C + channel[None, :], value, mask=tile)


def _unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def refuse_double(x: Tensor) -> None:
    if x.dtype == torch.float64:
        raise TypeError("impl: the Triton kernels work in float32, float16 and bfloat16, got float64")


def _reduce(x: Tensor, size: Tensor | None, indices: Tensor, offsets: Tensor, out_size: Tensor | None) -> Tensor:
    refuse_double(x)
    x = _unit_stride(x)
    batch, tokens, channels = x.shape
    rows = offsets.shape[1] - 1
    out = x.new_empty((batch, rows, channels))
    if out.numel() == 0:
        return out
    tuned = config("weighted_merge", channels=channels)
    _reduce_rows[(triton.cdiv(rows, tuned["R"]), batch)](
        x, size if size is not None else x, indices.contiguous(), offsets.contiguous(), out,
        out_size if out_size is not None else out, tokens, rows, x.stride(0), x.stride(1),
        C=channels, HAS_SIZE=size is not None, MEAN=out_size is not None,
        R=tuned["R"], BC=triton.next_power_of_2(channels), num_warps=tuned["num_warps"], num_stages=1,
    )  # fmt: skip
    return out


def weighted_merge(
    x: Tensor, size: Tensor | None, indices: Tensor, offsets: Tensor, output_row: Tensor
) -> tuple[Tensor, Tensor]:
    merged_size = x.new_empty((x.shape[0], offsets.shape[1] - 1), dtype=torch.float32)
    if x.shape[2] == 0:
        raise ValueError(f"x: expected at least one channel, got shape {list(x.shape)}")
    return _reduce(x, None if size is None else size.contiguous(), indices, offsets, merged_size), merged_size


def unmerge_backward(grad: Tensor, indices: Tensor, offsets: Tensor, output_row: Tensor) -> Tensor:
    return _reduce(grad, None, indices, offsets, None)


def _spread(x: Tensor, size: Tensor | None, merged_size: Tensor | None, offsets: Tensor, output_row: Tensor) -> Tensor:
    refuse_double(x)
    x = _unit_stride(x)
    batch, rows, channels = x.shape
    tokens = output_row.shape[1]
    out = x.new_empty((batch, tokens, channels))
    if out.numel() == 0:
        return out
    tuned = config("weighted_merge", channels=channels)
    _spread_rows[(triton.cdiv(tokens, tuned["R"]), batch)](
        x, size.contiguous() if size is not None else x,
        merged_size.contiguous() if merged_size is not None else x,
        offsets.contiguous(), output_row.contiguous(), out, tokens, rows, x.stride(0), x.stride(1),
        C=channels, HAS_SIZE=size is not None, SHARE=merged_size is not None,
        R=tuned["R"], BC=triton.next_power_of_2(channels), num_warps=tuned["num_warps"], num_stages=1,
    )  # fmt: skip
    return out


def weighted_merge_backward(
    grad: Tensor, size: Tensor | None, merged_size: Tensor, offsets: Tensor, output_row: Tensor
) -> Tensor:
    return _spread(grad, size, merged_size, offsets, output_row)


def unmerge(x: Tensor, indices: Tensor, offsets: Tensor, output_row: Tensor) -> Tensor:
    return _spread(x, None, None, offsets, output_row)
