"""Cosine-Gumbel assignment in Triton: the entities stream past a tile of rows, and nothing of size M x K is kept.

Symbols: M rows of x, K entities, d channels (D), BM rows and BK entities of a tile, BD channels of a product's step,
DV channels of a soft output's tile, S splits of the entities.

Floor: the cosines, 2 M K d FLOP, beside the noise of each of M K logits; reads (M + K) d elements, writes M d.
``_assign`` keeps a running maximum, argmax and sum of exponentials, and in soft mode the weighted sum of entities, so
the softmax takes one pass. In hard mode each thread keeps them for its own columns, and they are combined after the
last tile. Where there are few rows, S programs share the entities of a row tile, and ``_join`` combines them in a fixed
order, so every run gives the same bits. Logits are powers of two: e^z = 2^(z log2 e) costs no product of its own.

Where all channels are in one step (BD >= D), x stays in shared memory and the noise is drawn while the matrix unit
works. The compiler waits for a product before the next instruction, unless its sum is carried by the loop and read only
under a condition. Hence ``products`` and an ``if`` that is always true.

Norms are applied in the epilogue: rows are multiplied as stored, and the products by 1 / |x| and 1 / |s|. Products of
float16 and bfloat16 are exact in float32, so the error of a cosine is that of the float32 sum. float32 products run as
tf32x3, three products of 11-bit parts, with an error below 2^-20 |x||s|, less than a float32 sum of 512 terms may have.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .cosine_gumbel_assign_shared import (
    LOG2E,
    draw_noise,
    load_rows,
    load_tile,
    noise_arguments,
    noise_shift,
    precision,
    prepare,
    row_plan,
    select_config,
    with_noise,
)
from .hardware import exp2_of, rounded_product
from .host import divide_up, refuse_double, round_up_to_power
from .launch import cache_launches
from .philox import NATURAL, tile_columns


@triton.jit
def finite(peak):
    """Returns the origin of exponentials: the peak, or 0 where it is infinite and inf - inf would be NaN."""
    return tl.where(tl.abs(peak) < float("inf"), peak, 0.0)


@triton.jit
def _lanes(tile, Q: tl.constexpr):
    """``[BM, BK]`` -> ``[BM, Q, BK / Q]``: the columns of each of a row's Q threads, ascending; Q is 1 or 4."""
    BM: tl.constexpr = tile.shape[0]
    BK: tl.constexpr = tile.shape[1]
    if Q == 1:
        return tl.reshape(tile, (BM, 1, BK))
    else:
        tile = tl.reshape(tile, (BM, BK // 16, 2, 4, 2))
        return tl.reshape(tl.permute(tile, (0, 3, 1, 2, 4)), (BM, 4, BK // 4))


@triton.jit
def _lowest(found, column):
    """Returns the lowest column of those found along the last axis; the largest integer if there is none."""
    return tl.min(tl.where(found, column, 0x7FFFFFFF), 2)


@triton.jit
def copy_chosen(source_ptr, out_ptr, index, row, live, stride, D: tl.constexpr):
    """Copies the rows ``index`` of the entities as given to the rows ``row`` of the output."""
    BC: tl.constexpr = 64
    for start in tl.range(0, D, BC, num_stages=1):
        channel = start + tl.arange(0, BC)
        inside = live[:, None] & (channel < D)[None, :]
        value = tl.load(source_ptr + index.to(tl.int64)[:, None] * stride + channel[None, :], mask=inside)
        target = out_ptr + row.to(tl.int64)[:, None] * D + channel[None, :]
        tl.store(target, value.to(out_ptr.dtype.element_ty), mask=inside)


@cache_launches(do_not_specialize=["rows", "count", "above", "per_split"])
def _assign(
    x_ptr,  # [M, d] contiguous, as prepared: the rows whose sx is not 1
    given_x_ptr,  # [M, d] contiguous, the other rows
    e_ptr,  # [P, d], as prepared
    source_ptr,  # [K, d], strides (e_k, 1): the entities as given, read where neither SOFT nor SPLIT
    rx_ptr,  # [M] float32, 1 / length
    sx_ptr,  # [M] float32, the power of two that was divided out
    re_ptr,  # [P] float32, 1 / length
    se_ptr,  # [P] float32, entity = its row of e times this
    tau_ptr,  # 0-d
    noise_ptr,  # [M, K], strides (noise_m, noise_k), read where NOISE is 1
    seed_ptr,  # 0-d int64, read where NOISE is 2
    index_ptr,  # [M] int64; where SPLIT, this and the next three are scratch, whose rows are those of the launch
    peak_ptr,  # [M] float32: the log-normalizer; where SPLIT [S, m]: the largest logit in powers of two
    sum_ptr,  # [S, m] float32: sum of exp(logit - peak), written where SPLIT
    acc_ptr,  # [M, d]: the output; where SOFT and SPLIT [S, m, d] float32: sum of exp(logit - peak) s_k
    rows,  # m, of this launch
    count,
    above,  # rows before this launch
    per_split,  # entities of a split, a multiple of BK
    noise_m,
    noise_k,
    e_k,
    D: tl.constexpr,
    NOISE: tl.constexpr,
    SOFT: tl.constexpr,
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
    DV: tl.constexpr,
):
    """One program: BM rows against the entities of one split, in soft mode DV channels of the output."""
    split = tl.program_id(1)
    place = tl.program_id(0) * BM + tl.arange(0, BM)
    live = place < rows
    row = above + tl.minimum(place, rows - 1)  # reads past the end go to the last row, so they need no mask
    seed = tl.load(seed_ptr) if NOISE == 2 else 0
    WHOLE: tl.constexpr = BD >= D
    CARRY: tl.constexpr = WHOLE and not SOFT  # with a second product in the loop the compiler omits the wait
    Q: tl.constexpr = 1 if SOFT else 4
    scale = tl.load(rx_ptr + row) * (LOG2E / tl.load(tau_ptr).to(tl.float32))
    x_row_ptr = x_ptr
    if x_ptr.dtype.element_ty != tl.float16:  # whose rows need no scaling: all of x is in one place
        x_row_ptr = tl.where(tl.load(sx_ptr + row) == 1.0, given_x_ptr, x_ptr)[:, None]
    if WHOLE:
        x = load_rows(x_row_ptr, row, 0, D, BD)  # kept for all entities
    value_start = tl.program_id(2) * DV

    peak = tl.full([BM, Q], float("-inf"), tl.float32)
    total = tl.zeros([BM, Q], tl.float32)
    index = tl.zeros([BM, Q], tl.int32)
    offset = _lanes(tl.broadcast_to(tile_columns(BK)[None, :], (BM, BK)), Q)
    products = tl.zeros([BM, BK], tl.float32)
    always = count + rows  # above any column, but the compiler cannot know it
    if SOFT:
        acc = tl.zeros([BM, DV], tl.float32)
    begin = tl.multiple_of(split * per_split, 16)
    for first in range(begin, tl.minimum(begin + per_split, count), BK):
        if WHOLE:
            e = load_tile(e_ptr, first, 0, D, BK, BD)
            if CARRY:
                products = tl.dot(x, tl.trans(e), products, input_precision=PRECISION)
            else:
                products = tl.dot(x, tl.trans(e), input_precision=PRECISION)
        else:
            products = tl.zeros([BM, BK], tl.float32)
            for start in range(0, D, BD):
                xs = load_rows(x_row_ptr, row, start, D, BD)
                es = load_tile(e_ptr, first, start, D, BK, BD)
                products = tl.dot(xs, tl.trans(es), products, input_precision=PRECISION)
        re = tl.load(re_ptr + first + tl.arange(0, BK))
        z = draw_noise(noise_ptr, noise_m, noise_k, seed, row, first, count, NOISE, BM, BK)
        if CARRY:
            if first < always:
                z = products * re[None, :] * scale[:, None] - z
                products = tl.zeros([BM, BK], tl.float32)
        else:
            z = products * re[None, :] * scale[:, None] - z
        if first + BK > count:
            z = tl.where((first + tile_columns(BK) < count)[None, :], z, float("-inf"))

        # NaN never wins but stays in the sum. Among equals the lowest column wins.
        z_lanes = _lanes(z, Q)
        tile_peak = tl.max(z_lanes, 2)
        best = first + _lowest(z_lanes == tile_peak[:, :, None], offset)
        index = tl.where(tile_peak > peak, best, index)
        new_peak = tl.maximum(peak, tile_peak)
        origin = finite(new_peak)
        keep = tl.where(peak > float("-inf"), exp2_of(peak - origin), 1.0)
        p = exp2_of(z_lanes - origin[:, :, None])
        total = total * keep + tl.sum(p, 2)
        peak = new_peak
        if SOFT:
            p = tl.reshape(p, (BM, BK))
            if e_ptr.dtype.element_ty == tl.float16:
                p = p * 32768.0  # otherwise most of many entities would be float16 subnormals
            else:
                p = p * tl.load(se_ptr + first + tl.arange(0, BK))[None, :]
            if WHOLE and DV == BD:
                values = e
            else:
                values = load_tile(e_ptr, first, value_start, D, BK, DV)
            keep = tl.reshape(keep, (BM,))
            acc = tl.dot(p.to(values.dtype), values, acc * keep[:, None], input_precision=PRECISION)

    row_peak = tl.max(peak, 1)
    origin = finite(row_peak)
    weight = tl.where(peak > float("-inf"), exp2_of(finite(peak) - origin[:, None]), 1.0)
    row_total = tl.sum(rounded_product(total, weight), 1)
    row_index = tl.min(tl.where(peak == row_peak[:, None], index, 0x7FFFFFFF), 1)
    row_index = tl.where(row_peak > float("-inf"), row_index, 0)
    if SPLIT:
        out = split.to(tl.int64) * rows + place
    else:
        out = above.to(tl.int64) + place
    if SOFT:
        if e_ptr.dtype.element_ty == tl.float16:
            acc = acc * 3.0517578125e-05
        if not SPLIT:
            acc = acc / row_total[:, None]
        channel = value_start + tl.arange(0, DV)
        target = acc_ptr + out[:, None] * D + channel[None, :]
        tl.store(target, acc.to(acc_ptr.dtype.element_ty), mask=live[:, None] & (channel < D)[None, :])
    elif not SPLIT:
        copy_chosen(source_ptr, acc_ptr, row_index, out, live, e_k, D)
    write = live & (tl.program_id(2) == 0)
    tl.store(index_ptr + out, row_index.to(tl.int64), mask=write)
    if SPLIT:
        tl.store(peak_ptr + out, row_peak + noise_shift(NOISE), mask=write)
        tl.store(sum_ptr + out, row_total, mask=write)
    else:
        normalizer = (origin + tl.log2(row_total) + noise_shift(NOISE)) * NATURAL
        tl.store(peak_ptr + out, normalizer, mask=write)


@cache_launches(do_not_specialize=["rows", "above", "splits"])
def _join(
    index_part_ptr,  # [S, m] int64
    peak_ptr,  # [S, m] float32, in powers of two
    sum_ptr,  # [S, m] float32
    acc_ptr,  # [S, m, d] float32, read where SOFT
    source_ptr,  # [K, d], strides (e_k, 1): the entities as given, read where hard
    index_ptr,  # [M] int64
    normalizer_ptr,  # [M] float32
    out_ptr,  # [M, d]
    rows,  # m, which are joined
    above,  # rows of the results before these
    splits,
    e_k,
    D: tl.constexpr,
    SOFT: tl.constexpr,
    R: tl.constexpr,
    BC: tl.constexpr,
):
    """One program: joins the results of all splits in ascending order for BC channels of R rows."""
    row = tl.program_id(0) * R + tl.arange(0, R)
    live = row < rows
    at = row.to(tl.int64)
    peak = tl.full([R], float("-inf"), tl.float32)
    index = tl.zeros([R], tl.int64)
    for split in range(0, splits):
        here = at + split * rows.to(tl.int64)
        part = tl.load(peak_ptr + here, mask=live, other=float("-inf"))
        better = part > peak  # strict, so equals keep the lower index
        index = tl.where(better, tl.load(index_part_ptr + here, mask=live, other=0), index)
        peak = tl.where(better, part, peak)
    origin = finite(peak)
    total = tl.zeros([R], tl.float32)
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = live[:, None] & (channel < D)[None, :]
    acc = tl.zeros([R, BC], tl.float32)
    for split in range(0, splits):
        here = at + split * rows.to(tl.int64)
        part = tl.load(peak_ptr + here, mask=live, other=0.0)
        # finite(part) is the origin of that split's sum
        weight = tl.where(part == float("-inf"), 1.0, exp2_of(finite(part) - origin))
        total += tl.load(sum_ptr + here, mask=live, other=1.0) * weight
        if SOFT:
            acc += tl.load(acc_ptr + here[:, None] * D + channel[None, :], mask=inside, other=0.0) * weight[:, None]
    at += above
    if SOFT:
        result = (acc / total[:, None]).to(out_ptr.dtype.element_ty)
    else:
        result = tl.load(source_ptr + index[:, None] * e_k + channel[None, :], mask=inside).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + at[:, None] * D + channel[None, :], result, mask=inside)
    write = live & (tl.program_id(1) == 0)
    tl.store(index_ptr + at, index, mask=write)
    tl.store(normalizer_ptr + at, (origin + tl.log2(total)) * NATURAL, mask=write)


def gumbel_assignment(
    x: Tensor, entities: Tensor, tau: Tensor, noise: Tensor | None, seed: Tensor | None, hard: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """``x`` [M, d], ``entities`` [K, d] -> (output [M, d], index [M], log_normalizer [M]); tau stays on the device."""
    refuse_double(x)
    refuse_double(entities)
    (rows, depth), count = x.shape, entities.shape[0]
    dtype = torch.promote_types(x.dtype, entities.dtype)
    index = x.new_empty(rows, dtype=torch.int64)
    normalizer = x.new_empty(rows, dtype=torch.float32)
    output = x.new_empty(rows, depth, dtype=dtype)
    if rows == 0:
        return output, index, normalizer
    kind, noise, seed, *strides = noise_arguments(noise, seed, normalizer)
    use = with_noise(select_config("cosine_gumbel_assign", "hard" if hard else "soft", depth, dtype), kind)
    ready = prepare(x, entities, copy_all=False)
    source = ready.source
    wide = 1 if hard else divide_up(depth, use["DV"])
    for above, height, tiles, splits, share in row_plan(rows, use, wide, count):
        parts = index, normalizer, normalizer, output
        if splits > 1:
            peak = normalizer.new_empty(splits, height)
            sums = peak if hard else peak.new_empty(splits, height, depth)
            parts = index.new_empty(splits, height), peak, torch.empty_like(peak), sums
        _assign[(tiles, splits, wide)](
            ready.x, ready.given, ready.entities, source, ready.rx, ready.sx, ready.re, ready.se, tau,
            noise, seed, *parts, height, count, above, share, *strides, source.stride(0),
            D=depth, NOISE=kind, SOFT=not hard, SPLIT=splits > 1, PRECISION=precision(dtype),
            BM=use["BM"], BK=use["BK"], BD=use["BD"], DV=use["DV"],
            num_warps=use["num_warps"], num_stages=use["num_stages"],
        )  # fmt: skip
        if splits > 1:
            width = min(128, round_up_to_power(depth))
            _join[(divide_up(height, 32), divide_up(depth, width))](
                *parts, source, index, normalizer, output, height, above, splits, source.stride(0),
                D=depth, SOFT=not hard, R=32, BC=width, num_warps=4, num_stages=1,
            )  # fmt: skip
    return output, index, normalizer
