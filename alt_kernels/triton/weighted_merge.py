"""Merge, unmerge and their derivatives in Triton: two kernels over a plan of gathers, without atomics.

Symbols: B images, N input tokens, N' output rows, C channels, R rows per program, BC >= C their width.

``_reduce_rows`` goes from tokens to rows (merge, and the derivative of unmerge), ``_spread_rows`` from rows to
tokens (unmerge, and the derivative of merge). Both read and write every element once: the floor is (N + N') C elements
per image. Most rows have one token and are copied, R at a time; only the others are multiplied, added and divided.

The values of a plan are not checked: reading them back would stall the GPU.
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from .host import divide_up, refuse_double, round_up_to_power, unit_stride
from .launch import cache_launches
from .launch_configs import config


@cache_launches(do_not_specialize=["tokens", "rows"])
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
    tiles = tl.cdiv(rows, R)
    image = (tl.program_id(0) // tiles).to(tl.int64)  # a 1-D grid: other dimensions are limited to 65,535 programs
    row = (tl.program_id(0) % tiles) * R + tl.arange(0, R)
    live = row < rows
    channel = tl.arange(0, BC)
    in_width = channel < C
    first = tl.load(offsets_ptr + image * (rows + 1) + row, mask=live, other=0)
    last = tl.load(offsets_ptr + image * (rows + 1) + row + 1, mask=live, other=0)
    count = last - first  # [R]

    # Rows of one token, the most frequent, are copied bit for bit.
    single = live & (count == 1)
    token = tl.load(indices_ptr + image * tokens + first, mask=single, other=0).to(tl.int64)
    tile = single[:, None] & in_width[None, :]
    own = tl.load(x_ptr + image * x_b + token[:, None] * x_n + channel[None, :], mask=tile, other=0.0)  # [R, BC]
    tl.store(out_ptr + (image * rows + row)[:, None] * C + channel[None, :], own, mask=tile)
    if MEAN:
        if HAS_SIZE:
            total = tl.load(size_ptr + image * tokens + token, mask=single, other=0.0)
        else:
            total = tl.full([R], 1.0, tl.float32)
        tl.store(out_size_ptr + image * rows + row, total, mask=single)

    # The others are done one at a time: a tile of one row needs few registers, so more programs fit a multiprocessor.
    if tl.max(count, 0) > 1:
        for j in range(R):
            target = (tl.program_id(0) % tiles) * R + j
            inside = target < rows
            begin = tl.load(offsets_ptr + image * (rows + 1) + target, mask=inside, other=0)
            end = tl.load(offsets_ptr + image * (rows + 1) + target + 1, mask=inside, other=0)
            if end - begin > 1:
                acc = tl.zeros([BC], tl.float32)
                size_sum = 0.0
                place = begin
                source = tl.load(indices_ptr + image * tokens + place).to(tl.int64)
                while source >= 0:  # the compiler would unroll `place < end`, which costs registers
                    part = tl.load(x_ptr + image * x_b + source * x_n + channel, mask=in_width, other=0.0)
                    part = part.to(tl.float32)
                    if MEAN:
                        weight = 1.0
                        if HAS_SIZE:
                            weight = tl.load(size_ptr + image * tokens + source)
                            part = part * weight
                        size_sum += weight
                    acc += part
                    place += 1
                    source = tl.load(indices_ptr + image * tokens + place, mask=place < end, other=-1).to(tl.int64)
                if MEAN:
                    tl.store(out_size_ptr + image * rows + target, size_sum)
                    acc = tl.where(size_sum != 0.0, acc / tl.where(size_sum != 0.0, size_sum, 1.0), 0.0)
                at = (image * rows + target) * C + channel
                tl.store(out_ptr + at, acc.to(out_ptr.dtype.element_ty), mask=in_width)


@cache_launches(do_not_specialize=["tokens", "rows"])
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
    tiles = tl.cdiv(tokens, R)
    image = (tl.program_id(0) // tiles).to(tl.int64)
    token = (tl.program_id(0) % tiles) * R + tl.arange(0, R)
    live = token < tokens
    channel = tl.arange(0, BC)
    tile = live[:, None] & (channel < C)[None, :]
    row = tl.load(output_row_ptr + image * tokens + token, mask=live, other=0).to(tl.int64)  # [R]
    value = tl.load(x_ptr + image * x_b + row[:, None] * x_n + channel[None, :], mask=tile, other=0.0)  # [R, BC]
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
    target = (image * tokens + token)[:, None] * C + channel[None, :]
    tl.store(out_ptr + target, value, mask=tile)


def _reduce(x: Tensor, size: Tensor | None, indices: Tensor, offsets: Tensor, out_size: Tensor | None) -> Tensor:
    """Returns the mean of each row's tokens, where ``out_size`` is given and written, or their sum."""
    refuse_double(x)
    x = unit_stride(x)
    batch, tokens, channels = x.shape
    rows = offsets.shape[1] - 1
    out = x.new_empty(batch, rows, channels)
    if batch * rows == 0:
        return out
    width = round_up_to_power(max(channels, 1))
    tuned = config("weighted_merge", channels=width)
    x_b, x_n, _ = x.stride()
    _reduce_rows[(batch * divide_up(rows, tuned["R"]),)](
        x, size.contiguous() if size is not None else x, indices.contiguous(), offsets.contiguous(), out,
        out_size if out_size is not None else out, tokens, rows, x_b, x_n,
        C=channels, HAS_SIZE=size is not None, MEAN=out_size is not None,
        R=tuned["R"], BC=width, num_warps=tuned["num_warps"], num_stages=1,
    )  # fmt: skip
    return out


def weighted_merge(
    x: Tensor, size: Tensor | None, indices: Tensor, offsets: Tensor, output_row: Tensor
) -> tuple[Tensor, Tensor]:
    """x'_j = sum_{i in G(j)} s_i x_i / S_j: ``[B, N, C]`` -> ``[B, N', C]``, and S ``[B, N']`` float32."""
    merged_size = x.new_empty(x.shape[0], offsets.shape[1] - 1, dtype=torch.float32)
    return _reduce(x, size, indices, offsets, merged_size), merged_size


def unmerge_backward(grad: Tensor, indices: Tensor, offsets: Tensor, output_row: Tensor) -> Tensor:
    """dx_j = sum_{i in G(j)} dy_i: ``[B, N, C]`` -> ``[B, N', C]``."""
    return _reduce(grad, None, indices, offsets, None)


def _spread(x: Tensor, size: Tensor | None, merged_size: Tensor | None, offsets: Tensor, output_row: Tensor) -> Tensor:
    """Returns each token's copy of its row, times the token's share where ``merged_size`` is given."""
    refuse_double(x)
    x = unit_stride(x)
    batch, rows, channels = x.shape
    tokens = output_row.shape[1]
    out = x.new_empty(batch, tokens, channels)
    if out.numel() == 0:
        return out
    width = round_up_to_power(channels)
    tuned = config("weighted_merge", channels=width)
    x_b, x_n, _ = x.stride()
    _spread_rows[(batch * divide_up(tokens, tuned["R"]),)](
        x, size.contiguous() if size is not None else x,
        merged_size.contiguous() if merged_size is not None else x,
        offsets.contiguous(), output_row.contiguous(), out, tokens, rows, x_b, x_n,
        C=channels, HAS_SIZE=size is not None, SHARE=merged_size is not None,
        R=tuned["R"], BC=width, num_warps=tuned["num_warps"], num_stages=1,
    )  # fmt: skip
    return out


def weighted_merge_backward(
    grad: Tensor, size: Tensor | None, merged_size: Tensor, indices: Tensor, offsets: Tensor, output_row: Tensor
) -> Tensor:
    """dx_i = (s_i / S_j) dx'_j for i in G(j): ``[B, N', C]`` -> ``[B, N, C]``."""
    return _spread(grad, size, merged_size, offsets, output_row)


def unmerge(x: Tensor, indices: Tensor, offsets: Tensor, output_row: Tensor) -> Tensor:
    """y_i = x_{j(i)}: ``[B, N', C]`` -> ``[B, N, C]``."""
    return _spread(x, None, None, offsets, output_row)
