r"""Derivative of cosine-Gumbel assignment in Triton: logits and noise are computed again, tile by tile, no atomics.

Symbols as in gumbel_assignment.py; dO the incoming gradient, u, v the unit rows of x and of the entities, w = u . v,
A from the saved log-normalizer, T splits of the rows.

    dA = dO S^T          delta_i = sum_k A_ik dA_ik          dl_ik = A_ik (dA_ik - delta_i)
    dx_i = (sum_k dl_ik v_k - u_i q_i) / (tau |x_i|)         q_i = sum_k dl_ik w_ik = u_i . sum_k dl_ik v_k
    ds_k = (sum_i dl_ik u_i - v_k h_k) / (tau |s_k|) + sum_i W_ik dO_i    h_k = sum_i dl_ik w_ik
    dtau = -sum_i q_i / tau^2                                W = onehot (hard) or A (soft)

Sweeps over M K: ``_delta`` (2 products), ``_grad_x`` (3) and, on request, ``_grad_entities`` (3) and ``_entity_values``
(hard 1 without noise, soft 2): 5 products for x alone, 9 hard or 10 soft with the entities, each 2 M K d FLOP, beside
two, three or (soft) four drawings of the noise. Where DV < d the logits are computed again for every DV channels.
The hard value path is a product with the one-hot W, exact, so that an entity chosen by every row costs no more than
another. ``_grad_x`` keeps a tile of rows and streams the corpus, the two others the other way round; splits write
partial sums that ``_finish`` adds in a fixed order and projects, because a projection in the first kernels spilled.

dl and A are rounded to the inputs' dtype for their products, as in flash attention. In float16 dl is scaled by a power
of two taken from the largest value a row (an entity's sum: any row) can have, so it neither overflows nor vanishes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .aot_case import AotCase
from .gumbel_assignment import (
    NAMES,
    SEED,
    add_noise,
    aot_case,
    chosen,
    load_rows,
    noise_arguments,
    power_below,
    precision,
    prepare,
    signature,
    split_plan,
)
from .host import refuse_double
from .philox import tile_columns

STEM = "gumbel_assignment_backward"


@triton.jit(do_not_specialize=["rows", "count", "per_split"])
def _delta(
    grad_ptr,  # [M, d] contiguous
    x_ptr,  # [M, d] prepared
    e_ptr,  # [K, d] prepared
    rx_ptr,  # [M]
    re_ptr,  # [K]
    se_ptr,  # [K]
    tau_ptr,  # 0-d
    noise_ptr,  # [M, K], read where NOISE is 1
    seed_ptr,  # 0-d, read where NOISE is 2
    normalizer_ptr,  # [M]
    delta_ptr,  # [S, M] float32: sum over the split of A dA
    largest_ptr,  # [S, M] float32, written where BOUND: max of A |dA| / |s|
    weight_ptr,  # [S, M] float32, written where BOUND: max of A / |s|
    rows,
    count,
    per_split,
    noise_m,
    noise_k,
    D: tl.constexpr,
    NOISE: tl.constexpr,
    BOUND: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
):
    """One program: delta of BM rows over the entities of one split."""
    split = tl.program_id(1)
    place = tl.program_id(0) * BM + tl.arange(0, BM)
    live = place < rows
    row = tl.minimum(place, rows - 1)
    rx = tl.load(rx_ptr + row)
    normalizer = tl.load(normalizer_ptr + row)
    sharpness = 1.0 / tl.load(tau_ptr).to(tl.float32)
    seed = tl.load(seed_ptr) if NOISE == 2 else 0
    delta = tl.zeros([BM], tl.float32)
    largest = tl.zeros([BM], tl.float32)
    heaviest = tl.zeros([BM], tl.float32)
    begin = split * per_split
    for first in range(begin, tl.minimum(begin + per_split, count), BK):
        column = first + tile_columns(BK)
        entity = tl.minimum(column, count - 1)
        z = tl.zeros([BM, BK], tl.float32)
        da = tl.zeros([BM, BK], tl.float32)
        for start in range(0, D, BD):
            e = tl.trans(load_rows(e_ptr, entity, start, D, BD))
            z = tl.dot(load_rows(x_ptr, row, start, D, BD), e, z, input_precision=PRECISION)
            da = tl.dot(load_rows(grad_ptr, row, start, D, BD), e, da, input_precision=PRECISION)
        re = tl.load(re_ptr + entity)
        z = z * (rx * sharpness)[:, None] * re[None, :]
        z = add_noise(z, noise_ptr, noise_m, noise_k, seed, row, first, entity, NOISE, BK)
        a = tl.where((column < count)[None, :], tl.exp(z - normalizer[:, None]), 0.0)
        product = a * da * tl.load(se_ptr + entity)[None, :]
        delta += tl.sum(product, 1)
        if BOUND:
            largest = tl.maximum(largest, tl.max(tl.abs(product) * re[None, :], 1))
            heaviest = tl.maximum(heaviest, tl.max(a * re[None, :], 1))
    out = split.to(tl.int64) * rows + place
    tl.store(delta_ptr + out, delta, mask=live)
    if BOUND:
        tl.store(largest_ptr + out, largest, mask=live)
        tl.store(weight_ptr + out, heaviest, mask=live)


@triton.jit(do_not_specialize=["rows", "count", "per_split"])
def _grad_x(
    grad_ptr,  # [M, d] contiguous
    x_ptr,  # [M, d] prepared
    e_ptr,  # [K, d] prepared
    rx_ptr,  # [M]
    re_ptr,  # [K]
    sx_ptr,  # [M]
    se_ptr,  # [K]
    tau_ptr,  # 0-d
    noise_ptr,  # [M, K], read where NOISE is 1
    seed_ptr,  # 0-d, read where NOISE is 2
    normalizer_ptr,  # [M]
    delta_ptr,  # [M]
    bound_ptr,  # [M] float32, read where BOUND: |dl| / |s| is at most this
    part_ptr,  # [S, M, d] float32: sum over the split of dl v / (tau |x|)
    along_ptr,  # [S, M] float32: q
    rows,
    count,
    per_split,
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
    """One program: DV channels of dx of BM rows, over the entities of one split."""
    split = tl.program_id(1)
    place = tl.program_id(0) * BM + tl.arange(0, BM)
    live = place < rows
    row = tl.minimum(place, rows - 1)
    rx = tl.load(rx_ptr + row)
    normalizer = tl.load(normalizer_ptr + row)
    delta = tl.load(delta_ptr + row)
    sharpness = 1.0 / tl.load(tau_ptr).to(tl.float32)
    seed = tl.load(seed_ptr) if NOISE == 2 else 0
    value_start = tl.program_id(2) * DV
    unit = tl.full([BM], 1.0, tl.float32)
    if BOUND:
        unit = power_below(tl.maximum(tl.load(bound_ptr + row), 1e-30)) * 0.0001220703125  # dl / unit <= 2^14
    WHOLE: tl.constexpr = BD >= D
    if WHOLE:
        x = load_rows(x_ptr, row, 0, D, BD)
        grad = load_rows(grad_ptr, row, 0, D, BD)
    acc = tl.zeros([BM, DV], tl.float32)
    along = tl.zeros([BM], tl.float32)
    begin = split * per_split
    for first in range(begin, tl.minimum(begin + per_split, count), BK):
        column = first + tile_columns(BK)
        entity = tl.minimum(column, count - 1)
        if WHOLE:
            e = load_rows(e_ptr, entity, 0, D, BD)
            cosine = tl.dot(x, tl.trans(e), input_precision=PRECISION)
            da = tl.dot(grad, tl.trans(e), input_precision=PRECISION)
        else:
            cosine = tl.zeros([BM, BK], tl.float32)
            da = tl.zeros([BM, BK], tl.float32)
            for start in range(0, D, BD):
                es = tl.trans(load_rows(e_ptr, entity, start, D, BD))
                cosine = tl.dot(load_rows(x_ptr, row, start, D, BD), es, cosine, input_precision=PRECISION)
                da = tl.dot(load_rows(grad_ptr, row, start, D, BD), es, da, input_precision=PRECISION)
        re = tl.load(re_ptr + entity)
        cosine = cosine * rx[:, None] * re[None, :]
        z = cosine * sharpness
        z = add_noise(z, noise_ptr, noise_m, noise_k, seed, row, first, entity, NOISE, BK)
        a = tl.where((column < count)[None, :], tl.exp(z - normalizer[:, None]), 0.0)
        dl = a * (da * tl.load(se_ptr + entity)[None, :] - delta[:, None])
        along += tl.sum(dl * cosine, 1)
        dl = dl * re[None, :]
        if BOUND:
            dl = dl * (1.0 / unit)[:, None]
        if WHOLE and DV == BD:
            values = e
        else:
            values = load_rows(e_ptr, entity, value_start, D, DV)
        acc = tl.dot(dl.to(values.dtype), values, acc, input_precision=PRECISION)

    factor = rx * sharpness / tl.load(sx_ptr + row)
    out = split.to(tl.int64) * rows + place
    channel = value_start + tl.arange(0, DV)
    target = part_ptr + out[:, None] * D + channel[None, :]
    tl.store(target, acc * (unit * factor)[:, None], mask=live[:, None] & (channel < D)[None, :])
    tl.store(along_ptr + out, along, mask=live & (tl.program_id(2) == 0))


@triton.jit(do_not_specialize=["rows", "count", "per_split"])
def _grad_entities(
    grad_ptr,  # [M, d] contiguous
    x_ptr,  # [M, d] prepared
    e_ptr,  # [K, d] prepared
    rx_ptr,  # [M]
    re_ptr,  # [K]
    se_ptr,  # [K]
    tau_ptr,  # 0-d
    noise_ptr,  # [M, K], read where NOISE is 1
    seed_ptr,  # 0-d, read where NOISE is 2
    normalizer_ptr,  # [M]
    delta_ptr,  # [M]
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

    Tiles are ``[BK, BM]``: what is summed over rows stays in the registers of one warp group.
    """
    split = tl.program_id(1)
    first = tl.program_id(0) * BK
    column = first + tile_columns(BK)
    entity = tl.minimum(column, count - 1)
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
        rx = tl.load(rx_ptr + row)
        cosine = cosine * re[:, None] * rx[None, :]
        z = cosine * sharpness
        if NOISE != 0:
            noise = tl.zeros([BM, BK], tl.float32)
            z += tl.trans(add_noise(noise, noise_ptr, noise_m, noise_k, seed, row, first, entity, NOISE, BK))
        a = tl.where(live[None, :], tl.exp(z - tl.load(normalizer_ptr + row)[None, :]), 0.0)
        dl = a * (da * se[:, None] - tl.load(delta_ptr + row)[None, :])
        along += tl.sum(dl * cosine, 1)
        dl = dl * rx[None, :]
        if BOUND:
            dl = dl * (re * (1.0 / unit))[:, None]
        if WHOLE and DV == BD:
            values = x
        else:
            values = load_rows(x_ptr, row, value_start, D, DV)
        acc = tl.dot(dl.to(values.dtype), values, acc, input_precision=PRECISION)

    factor = sharpness / se
    if BOUND:
        factor = factor * unit
    else:
        factor = factor * re
    out = split.to(tl.int64) * count + column
    channel = value_start + tl.arange(0, DV)
    valid = column < count
    target = part_ptr + out[:, None] * D + channel[None, :]
    tl.store(target, acc * factor[:, None], mask=valid[:, None] & (channel < D)[None, :])
    tl.store(along_ptr + out, along, mask=valid & (tl.program_id(2) == 0))


@triton.jit(do_not_specialize=["rows", "count", "per_split"])
def _entity_values(
    grad_ptr,  # [M, d] contiguous
    x_ptr,  # [M, d] prepared, read where soft, as are the next six
    e_ptr,  # [K, d] prepared
    rx_ptr,  # [M]
    re_ptr,  # [K]
    tau_ptr,  # 0-d
    noise_ptr,  # [M, K], where NOISE is 1
    seed_ptr,  # 0-d, where NOISE is 2
    index_ptr,  # [M] int64, read where HARD
    normalizer_ptr,  # [M], read where soft
    part_ptr,  # [T, K, d] float32: sum over the split of W dO
    along_ptr,  # [T, K] float32: 0, the value path has nothing to project
    rows,
    count,
    per_split,  # rows of a split, a multiple of BM
    noise_m,
    noise_k,
    D: tl.constexpr,
    NOISE: tl.constexpr,
    HARD: tl.constexpr,
    SPARSE: tl.constexpr,  # hard and so many entities that most tiles hold no choice: those are passed over
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
    DV: tl.constexpr,
):
    """One program: DV channels of the value path's part of ds of BK entities, over the rows of one split."""
    split = tl.program_id(1)
    first = tl.program_id(0) * BK
    column = first + tile_columns(BK)
    entity = tl.minimum(column, count - 1)
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
            z = z * (re * sharpness)[:, None] * tl.load(rx_ptr + row)[None, :]
            if NOISE != 0:
                noise = tl.zeros([BM, BK], tl.float32)
                z += tl.trans(add_noise(noise, noise_ptr, noise_m, noise_k, seed, row, first, entity, NOISE, BK))
            w = tl.where(live[None, :], tl.exp(z - tl.load(normalizer_ptr + row)[None, :]), 0.0)
            if grad_ptr.dtype.element_ty == tl.float16:
                w = w * 32768.0  # or most of a large corpus would be among float16's subnormals
            values = load_rows(grad_ptr, row, value_start, D, DV)
            acc = tl.dot(w.to(values.dtype), values, acc, input_precision=PRECISION)

    if not HARD and grad_ptr.dtype.element_ty == tl.float16:
        acc = acc * 3.0517578125e-05
    out = split.to(tl.int64) * count + column
    channel = value_start + tl.arange(0, DV)
    valid = column < count
    target = part_ptr + out[:, None] * D + channel[None, :]
    tl.store(target, acc, mask=valid[:, None] & (channel < D)[None, :])
    tl.store(along_ptr + out, tl.zeros([BK], tl.float32), mask=valid & (tl.program_id(2) == 0))


@triton.jit(do_not_specialize=["rows", "splits"])
def _finish(
    part_ptr,  # [S, n, d] float32
    along_ptr,  # [S, n] float32
    row_ptr,  # [n, d] prepared
    inverse_ptr,  # [n]
    scale_ptr,  # [n]
    tau_ptr,  # 0-d
    out_ptr,  # [n, d]
    rows,
    splits,
    D: tl.constexpr,
    R: tl.constexpr,
    BC: tl.constexpr,
):
    """One program: BC channels of R rows: the partial sums in ascending order, minus what lies along the row itself."""
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
    inverse = tl.load(inverse_ptr + row, mask=live, other=0.0)
    factor = inverse / (tl.load(tau_ptr).to(tl.float32) * tl.load(scale_ptr + row, mask=live, other=1.0))
    own = tl.load(row_ptr + at[:, None] * D + channel[None, :], mask=inside, other=0.0).to(tl.float32)
    acc -= own * (inverse * factor * along)[:, None]
    tl.store(out_ptr + at[:, None] * D + channel[None, :], acc.to(out_ptr.dtype.element_ty), mask=inside)


def _finished(
    part: Tensor, along: Tensor, rows: Tensor, inverse: Tensor, scale: Tensor, tau: Tensor, out: Tensor
) -> None:
    splits, count, depth = part.shape
    width = min(128, triton.next_power_of_2(depth))
    _finish[(triton.cdiv(count, 16), triton.cdiv(depth, width))](
        part, along, rows, inverse, scale, tau, out, count, splits, D=depth, R=16, BC=width, num_warps=4, num_stages=1
    )


def gumbel_assignment_backward(
    grad: Tensor,
    x: Tensor,
    entities: Tensor,
    tau: Tensor,
    noise: Tensor | None,
    seed: Tensor | None,
    index: Tensor,
    log_normalizer: Tensor,
    hard: bool,
    need_entities: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """-> (grad_x [M, d], grad_entities [K, d] or [0], grad_tau 0-d), in the dtypes of x, entities and tau."""
    refuse_double(x)
    refuse_double(entities)
    (rows, depth), count = x.shape, entities.shape[0]
    grad_x = torch.empty((rows, depth), dtype=x.dtype, device=x.device)
    grad_entities = torch.empty((count, depth) if need_entities else (0,), dtype=entities.dtype, device=x.device)
    if rows == 0:
        return grad_x, grad_entities.zero_(), torch.zeros_like(tau)
    ready = prepare(x, entities)
    grad = grad.to(ready.dtype).contiguous()
    normalizer, index = log_normalizer.contiguous(), index.contiguous()
    kind, noise, seed, *strides = noise_arguments(noise, seed, ready.rx)
    bounded = ready.dtype == torch.float16
    common = {"D": depth, "NOISE": kind, "BOUND": bounded, "PRECISION": precision(ready.dtype)}

    use = chosen(STEM, "delta", depth, ready.dtype)
    tiles = triton.cdiv(rows, use["BM"])
    splits, share = split_plan(count, use["BK"], tiles, use.pop("programs"))
    sums, largest, heaviest = normalizer.new_empty((3, splits, rows)).unbind(0)
    _delta[(tiles, splits)](
        grad, ready.x, ready.entities, ready.rx, ready.re, ready.se, tau, noise, seed, normalizer,
        sums, largest, heaviest, rows, count, share, *strides, **common, **use,
    )  # fmt: skip
    delta = sums[0] if splits == 1 else sums.sum(0)
    bound = delta
    if bounded:
        bound = largest.amax(0) + delta.abs() * heaviest.amax(0)

    use = chosen(STEM, "rows", depth, ready.dtype)
    tiles, wide = triton.cdiv(rows, use["BM"]), triton.cdiv(depth, use["DV"])
    splits, share = split_plan(count, use["BK"], tiles * wide, use.pop("programs"))
    part, along = normalizer.new_empty((splits, rows, depth)), normalizer.new_empty((splits, rows))
    _grad_x[(tiles, splits, wide)](
        grad, ready.x, ready.entities, ready.rx, ready.re, ready.sx, ready.se, tau, noise, seed, normalizer,
        delta, bound, part, along, rows, count, share, *strides, **common, **use,
    )  # fmt: skip
    _finished(part, along, ready.x, ready.rx, ready.sx, tau, grad_x)
    grad_tau = (-along.sum() / tau.float().square()).to(tau.dtype)
    if not need_entities:
        return grad_x, grad_entities, grad_tau

    if bounded:
        bound = (bound * ready.rx).amax()
    use = chosen(STEM, "entities", depth, ready.dtype)
    tiles, wide = triton.cdiv(count, use["BK"]), triton.cdiv(depth, use["DV"])
    splits, share = split_plan(rows, use["BM"], tiles * wide, use.pop("programs"))
    other = chosen(STEM, "values", depth, ready.dtype)
    other_tiles, other_wide = triton.cdiv(count, other["BK"]), triton.cdiv(depth, other["DV"])
    more, other_share = split_plan(rows, other["BM"], other_tiles * other_wide, other.pop("programs"))
    part, along = normalizer.new_empty((splits + more, count, depth)), normalizer.new_empty((splits + more, count))
    _grad_entities[(tiles, splits, wide)](
        grad, ready.x, ready.entities, ready.rx, ready.re, ready.se, tau, noise, seed, normalizer,
        delta, bound, part, along, rows, count, share, *strides, **common, **use,
    )  # fmt: skip
    del common["BOUND"]
    _entity_values[(other_tiles, more, other_wide)](
        grad, ready.x, ready.entities, ready.rx, ready.re, tau, noise, seed, index, normalizer,
        part[splits:], along[splits:], rows, count, other_share, *strides,
        HARD=hard, SPARSE=hard and count > other["BM"] * other["BK"], **common, **other,
    )  # fmt: skip
    _finished(part, along, ready.entities, ready.re, ready.se, tau, grad_entities)
    return grad_x, grad_entities, grad_tau


def _aot() -> list[AotCase]:
    cases = []
    for dtype in NAMES:
        for prefix, kernel in (("delta", _delta), ("rows", _grad_x), ("entities", _grad_entities)):
            cases.append(aot_case(kernel, STEM, prefix, f"{prefix} seed", dtype, 512, NOISE=SEED))
        for label, hard, sparse in (("hard", True, False), ("hard, sparse", True, True), ("soft", False, False)):
            rest = {"NOISE": SEED, "HARD": hard, "SPARSE": sparse}
            cases.append(aot_case(_entity_values, STEM, "values", f"values {label}", dtype, 512, **rest))
    finish = {"D": 512, "R": 16, "BC": 128}
    types = signature(_finish, "bf16", finish, row_ptr="*bf16", out_ptr="*bf16")
    cases.append(AotCase("finish d=512 bf16", _finish, types, finish, 4, 1, False))
    return cases


AOT = _aot()
