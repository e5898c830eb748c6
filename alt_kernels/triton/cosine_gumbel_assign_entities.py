"""Derivative of cosine-Gumbel assignment to the entities: kernels that keep a tile of them and stream the rows.

Symbols and equations as in cosine_gumbel_assign_backward.py, which launches these kernels. Entities are read by place
(cosine_gumbel_assign_shared.py) and their sums are written by column.
"""

from __future__ import annotations

import triton.language as tl
from torch import Tensor

from .cosine_gumbel_assign_delta import CHOSEN, DELTA, NORMALIZER, state_of
from .cosine_gumbel_assign_shared import (
    LOG2E,
    draw_noise,
    load_rows,
    noise_shift,
    power_below,
)
from .hardware import exp2_of
from .host import divide_up, round_up_to_power
from .launch import cache_launches
from .philox import place_of, tile_columns

STEM = "cosine_gumbel_assign_backward"


@cache_launches(do_not_specialize=["rows", "count", "per_split"])
def _grad_entities(
    grad_ptr,  # [M, d] contiguous
    x_ptr,  # [M, d] prepared
    e_ptr,  # [P, d] prepared
    rx_ptr,  # [M]
    re_ptr,  # [P]
    se_ptr,  # [P]
    tau_ptr,  # 0-d
    noise_ptr,  # [M, K], read where NOISE is 1
    seed_ptr,  # 0-d, read where NOISE is 2
    state_ptr,  # [5, M], as `_delta` leaves it
    bound_ptr,  # 0-d float32, read where BOUND: |dl| / (|s| |x|) is at most this
    part_ptr,  # [T, K, d] float32: sum over the split of dl u / (tau |s|)
    along_ptr,  # [T, K] float32: h
    rows,
    count,
    per_split,  # rows of a split, a multiple of BM
    noise_m,
    noise_k,
    D: tl.constexpr,
    NOISE: tl.constexpr,
    BOUND: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
    DV: tl.constexpr,
):
    """One program: DV channels of the similarity's part of ds of BK entities, over the rows of one split.

    Tiles are ``[BK, BM]``, so that sums over rows stay in the registers of one warp group.
    """
    split = tl.program_id(1)
    first = tl.program_id(0) * BK
    entity = first + tl.arange(0, BK)  # by places
    re = tl.load(re_ptr + entity)
    se = tl.load(se_ptr + entity)
    sharpness = 1.0 / tl.load(tau_ptr).to(tl.float32)
    seed = tl.load(seed_ptr) if NOISE == 2 else 0
    value_start = tl.program_id(2) * DV
    unit = 1.0
    if BOUND:
        unit = power_below(tl.maximum(tl.load(bound_ptr), 1e-30)) * 0.0001220703125  # dl / unit <= 2^14
    WHOLE: tl.constexpr = BD >= D
    if WHOLE:
        e = load_rows(e_ptr, entity, 0, D, BD)
    acc = tl.zeros([BK, DV], tl.float32)
    along = tl.zeros([BK], tl.float32)
    begin = split * per_split
    for start_row in range(begin, tl.minimum(begin + per_split, rows), BM):
        place = start_row + tl.arange(0, BM)
        live = place < rows
        row = tl.minimum(place, rows - 1)
        if WHOLE:
            x = load_rows(x_ptr, row, 0, D, BD)
            grad = load_rows(grad_ptr, row, 0, D, BD)
            cosine = tl.dot(e, tl.trans(x), input_precision=PRECISION)
            da = tl.dot(e, tl.trans(grad), input_precision=PRECISION)
        else:
            cosine = tl.zeros([BK, BM], tl.float32)
            da = tl.zeros([BK, BM], tl.float32)
            for start in range(0, D, BD):
                es = load_rows(e_ptr, entity, start, D, BD)
                xs = load_rows(x_ptr, row, start, D, BD)
                cosine = tl.dot(es, tl.trans(xs), cosine, input_precision=PRECISION)
                grads = load_rows(grad_ptr, row, start, D, BD)
                da = tl.dot(es, tl.trans(grads), da, input_precision=PRECISION)
        da = da * se[:, None] - tl.load(state_of(state_ptr, CHOSEN, rows) + row)[None, :]
        rx = tl.load(rx_ptr + row)
        cosine = cosine * re[:, None] * rx[None, :]
        z = cosine * (sharpness * LOG2E)
        if NOISE != 0:
            z -= tl.trans(draw_noise(noise_ptr, noise_m, noise_k, seed, row, first, count, NOISE, BM, BK))
        normalizer = tl.load(state_of(state_ptr, NORMALIZER, rows) + row) * LOG2E - noise_shift(NOISE)
        a = tl.where(live[None, :], exp2_of(z - normalizer[None, :]), 0.0)
        dl = a * (da - tl.load(state_of(state_ptr, DELTA, rows) + row)[None, :])
        along += tl.sum(dl * cosine, 1)
        dl = dl * rx[None, :]
        if BOUND:
            dl = dl * (re * (1.0 / unit))[:, None]
        if WHOLE and DV == BD:
            values = x
        else:
            values = load_rows(x_ptr, row, value_start, D, DV)
        acc = tl.dot(dl.to(values.dtype), values, acc, input_precision=PRECISION)

    if BOUND:
        factor = sharpness * unit / se
    else:
        factor = re * sharpness / se  # in this order: 0 for a row of zeros, whose se may be tiny
    column = first + tile_columns(BK)
    out = split.to(tl.int64) * count + column
    valid = column < count
    channel = value_start + tl.arange(0, DV)
    target = part_ptr + out[:, None] * D + channel[None, :]
    tl.store(target, acc * factor[:, None], mask=valid[:, None] & (channel < D)[None, :])
    tl.store(along_ptr + out, along, mask=valid & (tl.program_id(2) == 0))


@cache_launches(do_not_specialize=["rows", "count", "per_split"])
def _entity_values(
    grad_ptr,  # [M, d] contiguous
    x_ptr,  # [M, d] prepared; this and the next six are read where soft
    e_ptr,  # [P, d] prepared
    rx_ptr,  # [M]
    re_ptr,  # [P]
    tau_ptr,  # 0-d
    noise_ptr,  # [M, K], where NOISE is 1
    seed_ptr,  # 0-d, where NOISE is 2
    index_ptr,  # [M] int64, read where HARD
    state_ptr,  # [5, M], as `_delta` leaves it, read where soft
    part_ptr,  # [T, K, d] float32: sum over the split of W dO
    rows,
    count,
    per_split,  # rows of a split, a multiple of BM
    noise_m,
    noise_k,
    D: tl.constexpr,
    NOISE: tl.constexpr,
    HARD: tl.constexpr,
    SPARSE: tl.constexpr,  # hard with so many entities that most tiles hold no choice; those are skipped
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
    DV: tl.constexpr,
):
    """One program: DV channels of the value path's part of ds of BK entities, over the rows of one split."""
    split = tl.program_id(1)
    first = tl.program_id(0) * BK
    entity = first + tl.arange(0, BK)  # by places
    column = first + tile_columns(BK)
    value_start = tl.program_id(2) * DV
    if not HARD:
        re = tl.load(re_ptr + entity)
        sharpness = 1.0 / tl.load(tau_ptr).to(tl.float32)
        seed = tl.load(seed_ptr) if NOISE == 2 else 0
    acc = tl.zeros([BK, DV], tl.float32)
    begin = split * per_split
    for start_row in range(begin, tl.minimum(begin + per_split, rows), BM):
        place = start_row + tl.arange(0, BM)
        live = place < rows
        row = tl.minimum(place, rows - 1)
        if HARD:
            choice = tl.where(live, tl.load(index_ptr + row).to(tl.int32), -1)
            w = tl.where(choice[None, :] == column[:, None], 1.0, 0.0)  # exact in every dtype
            if SPARSE:
                if tl.max(tl.where((choice >= first) & (choice < first + BK), 1, 0), 0) > 0:
                    values = load_rows(grad_ptr, row, value_start, D, DV)
                    acc = tl.dot(w.to(values.dtype), values, acc, input_precision=PRECISION)
            else:
                values = load_rows(grad_ptr, row, value_start, D, DV)
                acc = tl.dot(w.to(values.dtype), values, acc, input_precision=PRECISION)
        else:
            z = tl.zeros([BK, BM], tl.float32)
            for start in range(0, D, BD):
                es = load_rows(e_ptr, entity, start, D, BD)
                z = tl.dot(es, tl.trans(load_rows(x_ptr, row, start, D, BD)), z, input_precision=PRECISION)
            z = z * (re * (sharpness * LOG2E))[:, None] * tl.load(rx_ptr + row)[None, :]
            if NOISE != 0:
                z -= tl.trans(draw_noise(noise_ptr, noise_m, noise_k, seed, row, first, count, NOISE, BM, BK))
            normalizer = tl.load(state_of(state_ptr, NORMALIZER, rows) + row) * LOG2E - noise_shift(NOISE)
            w = tl.where(live[None, :], exp2_of(z - normalizer[None, :]), 0.0)
            if grad_ptr.dtype.element_ty == tl.float16:
                w = w * 32768.0  # otherwise most of many entities would be float16 subnormals
            values = load_rows(grad_ptr, row, value_start, D, DV)
            acc = tl.dot(w.to(values.dtype), values, acc, input_precision=PRECISION)

    if not HARD and grad_ptr.dtype.element_ty == tl.float16:
        acc = acc * 3.0517578125e-05
    out = split.to(tl.int64) * count + column
    valid = column < count
    channel = value_start + tl.arange(0, DV)
    target = part_ptr + out[:, None] * D + channel[None, :]
    tl.store(target, acc, mask=valid[:, None] & (channel < D)[None, :])


@cache_launches(do_not_specialize=["rows", "splits"])
def _finish(
    part_ptr,  # [S, n, d] float32
    along_ptr,  # [S, n] float32
    row_ptr,  # [P, d] prepared, entities by place
    inverse_ptr,  # [P] by place
    scale_ptr,  # [P] by place
    tau_ptr,  # 0-d
    out_ptr,  # [n, d]
    rows,
    splits,
    D: tl.constexpr,
    R: tl.constexpr,
    BC: tl.constexpr,
):
    """One program: BC channels of R rows, the partial sums in ascending order minus the component along the row."""
    row = tl.program_id(0) * R + tl.arange(0, R)
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    live = row < rows
    inside = live[:, None] & (channel < D)[None, :]
    at = row.to(tl.int64)
    acc = tl.zeros([R, BC], tl.float32)
    along = tl.zeros([R], tl.float32)
    for split in range(0, splits):
        here = at + split * rows.to(tl.int64)
        acc += tl.load(part_ptr + here[:, None] * D + channel[None, :], mask=inside, other=0.0)
        along += tl.load(along_ptr + here, mask=live, other=0.0)
    row = place_of(row)
    inverse = tl.load(inverse_ptr + row, mask=live, other=0.0)
    factor = inverse / (tl.load(tau_ptr).to(tl.float32) * tl.load(scale_ptr + row, mask=live, other=1.0))
    own = tl.load(row_ptr + row.to(tl.int64)[:, None] * D + channel[None, :], mask=inside, other=0.0).to(tl.float32)
    acc -= own * (inverse * factor * along)[:, None]
    tl.store(out_ptr + at[:, None] * D + channel[None, :], acc.to(out_ptr.dtype.element_ty), mask=inside)


def finish(part: Tensor, along: Tensor, rows: Tensor, inverse: Tensor, scale: Tensor, tau: Tensor, out: Tensor) -> None:
    """Writes ``out`` [K, d] from the partial sums of the splits, first those of the similarity, then of the values."""
    splits, count, depth = part.shape
    width = min(128, round_up_to_power(depth))
    _finish[(divide_up(count, 16), divide_up(depth, width))](
        part, along, rows, inverse, scale, tau, out, count, splits,
        D=depth, R=16, BC=width, num_warps=4, num_stages=1,
    )  # fmt: skip
