"""First sweep of the derivative of cosine-Gumbel assignment: the sums of each row, by which A and dl are known later.

Symbols and equations as in cosine_gumbel_assign_backward.py, which launches these kernels.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .cosine_gumbel_assign_shared import LOG2E, draw_noise, load_rows, load_tile, noise_shift
from .hardware import exp2_of
from .launch import cache_launches
from .philox import NATURAL, place_of, tile_columns


@triton.jit
def load_pair(x_ptr, grad_ptr, above, first, rows, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr):
    """Loads BM rows of x and of dO as one operand ``[2 BM, BD]``: eight of x, the same eight of dO, the next of x.

    They are the rows ``first`` and following of ``rows`` below ``above``; the last one stands for those past the end.

    A thread holds the places i and i + 8 of 16 rows of a product, so it has both the cosine and the dA of a row. A warp
    group reads one operand of 128 rows from shared memory twice as fast as two of 64.
    """
    place = tl.arange(0, 2 * BM)
    row = above + tl.minimum(first + (place // 16) * 8 + place % 8, rows - 1)
    channel = tl.arange(0, BD)
    at = row.to(tl.int64)[:, None] * D + channel[None, :]
    at = tl.where((place // 8 % 2 == 0)[:, None], x_ptr + at, grad_ptr + at)
    if D % BD == 0:
        return tl.load(at)
    return tl.load(at, mask=(channel < D)[None, :], other=0.0)


@triton.jit
def split_pair(pair):
    """Splits the products ``[2 BM, BK]`` of a pair into those of x and of dO, ``[BM, BK]`` each, within each thread."""
    BM: tl.constexpr = pair.shape[0] // 2
    BK: tl.constexpr = pair.shape[1]
    pair = tl.permute(tl.reshape(pair, (BM // 8, 2, 8, BK)), (0, 2, 3, 1))
    of_x, of_grad = tl.split(pair)
    return tl.reshape(of_x, (BM, BK)), tl.reshape(of_grad, (BM, BK))


@triton.jit
def pair_products(
    x_ptr, grad_ptr, e_ptr, row, first, D: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Returns x . s and dO . s ``[BM, BK]`` for rows that are too long to be kept, BD channels at a time."""
    of_x = tl.zeros([BM, BK], tl.float32)
    of_grad = tl.zeros([BM, BK], tl.float32)
    for start in range(0, D, BD):
        e = tl.trans(load_tile(e_ptr, first, start, D, BK, BD))
        of_x = tl.dot(load_rows(x_ptr, row, start, D, BD), e, of_x, input_precision=PRECISION)
        of_grad = tl.dot(load_rows(grad_ptr, row, start, D, BD), e, of_grad, input_precision=PRECISION)
    return of_x, of_grad


@triton.jit
def _chosen_grad(grad_ptr, e_ptr, se_ptr, index_ptr, row, count, D: tl.constexpr, BM: tl.constexpr):
    """Returns c ``[BM]``, dO . s of the chosen entity, to the rounding of a product: exactly dA_ib is not needed."""
    place = place_of(tl.minimum(tl.maximum(tl.load(index_ptr + row), 0), count - 1).to(tl.int32))
    BC: tl.constexpr = 32
    total = tl.zeros([BM], tl.float32)
    for start in tl.range(0, D, BC, num_stages=1):
        channel = start + tl.arange(0, BC)
        inside = (channel < D)[None, :]
        do = tl.load(grad_ptr + row.to(tl.int64)[:, None] * D + channel[None, :], mask=inside, other=0.0)
        e = tl.load(e_ptr + place.to(tl.int64)[:, None] * D + channel[None, :], mask=inside, other=0.0)
        total += tl.sum(do.to(tl.float32) * e.to(tl.float32), 1)
    return total * tl.load(se_ptr + place)


# What is kept of every row for the sweeps after this one: the places in ``state`` [5, M] float32.
Q: tl.constexpr = tl.constexpr(0)  # first, where it is aligned
CHOSEN: tl.constexpr = tl.constexpr(1)  # c
NORMALIZER: tl.constexpr = tl.constexpr(2)  # the log-normalizer with which A sums to 1
DELTA: tl.constexpr = tl.constexpr(3)
BOUND_OF_DL: tl.constexpr = tl.constexpr(4)  # |dl| / |s| is at most this; kept where BOUND
STATE = 5
SUMS = 6  # of a row in a split


@triton.jit
def state_of(state_ptr, WHICH: tl.constexpr, all_rows):
    """Returns the pointer to one kind of what is kept of ``all_rows`` rows."""
    return state_ptr + WHICH * all_rows.to(tl.int64)


@triton.jit
def _store_state(
    state_ptr, all_rows, row, live, saved, total, delta, mean, along, largest, heaviest, BOUND: tl.constexpr
):
    """Stores what follows from the sums over all entities, and the log-normalizer as ``saved``."""
    # A tau below about 2.4e-7 leaves logits without a digit after the point, of which no two sweeps make the same sum.
    # Then A is one-hot to the last digit, its gradient is 0, and so is a = exp(l - inf) of the next sweeps. NaN stays.
    lost = (total == 0.0) | (total == float("inf")) | (tl.abs(saved) >= 4194304.0)
    lost = lost & (total == total)
    safe = tl.where(lost, 1.0, total)
    delta = tl.where(lost, 0.0, delta / safe)
    q = tl.where(lost, 0.0, (along - delta * mean) / safe)
    correction = tl.where(lost, float("inf"), tl.log2(safe) * NATURAL)
    tl.store(state_of(state_ptr, NORMALIZER, all_rows) + row, saved + correction, mask=live)
    tl.store(state_of(state_ptr, DELTA, all_rows) + row, delta, mask=live)
    tl.store(state_of(state_ptr, Q, all_rows) + row, q, mask=live)
    if BOUND:
        bound = tl.where(lost, 0.0, (largest + tl.abs(delta) * heaviest) / safe)
        tl.store(state_of(state_ptr, BOUND_OF_DL, all_rows) + row, bound, mask=live)


@cache_launches(do_not_specialize=["rows", "count", "above", "all_rows", "per_split"])
def _delta(
    grad_ptr,  # [M, d] contiguous
    x_ptr,  # [M, d] prepared
    e_ptr,  # [P, d] prepared
    rx_ptr,  # [M]
    re_ptr,  # [P]
    se_ptr,  # [P]
    tau_ptr,  # 0-d
    noise_ptr,  # [M, K], read where NOISE is 1
    seed_ptr,  # 0-d, read where NOISE is 2
    index_ptr,  # [M] int64, b
    normalizer_ptr,  # [M]
    state_ptr,  # [5, M] float32, all of it written but where SPLIT, where only c is
    sums_ptr,  # [6, S, m] float32, written where SPLIT: sums over the split of a, a (dA - c), a w and a (dA - c) w,
    # and where BOUND the largest a |dA - c| / |s| and a / |s|
    rows,  # m, of this launch
    count,
    above,  # rows before this launch
    all_rows,  # M
    per_split,
    noise_m,
    noise_k,
    D: tl.constexpr,
    NOISE: tl.constexpr,
    BOUND: tl.constexpr,
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
):
    """One program: the sums behind delta and q of BM rows, over the entities of one split."""
    split = tl.program_id(1)
    place = tl.program_id(0) * BM + tl.arange(0, BM)
    live = place < rows
    row = above + tl.minimum(place, rows - 1)
    saved = tl.load(normalizer_ptr + row)
    normalizer = saved * LOG2E - noise_shift(NOISE)
    rx = tl.load(rx_ptr + row)
    scale = rx * (LOG2E / tl.load(tau_ptr).to(tl.float32))
    seed = tl.load(seed_ptr) if NOISE == 2 else 0
    chosen = _chosen_grad(grad_ptr, e_ptr, se_ptr, index_ptr, row, count, D, BM)
    tl.store(state_of(state_ptr, CHOSEN, all_rows) + row, chosen, mask=live & (split == 0))
    total = tl.zeros([BM], tl.float32)
    delta = tl.zeros([BM], tl.float32)
    mean = tl.zeros([BM], tl.float32)
    along = tl.zeros([BM], tl.float32)
    largest = tl.zeros([BM], tl.float32)
    heaviest = tl.zeros([BM], tl.float32)
    WHOLE: tl.constexpr = BD >= D
    if WHOLE:
        both = load_pair(x_ptr, grad_ptr, above, tl.program_id(0) * BM, rows, D, BD, BM)
        products = tl.zeros([2 * BM, BK], tl.float32)
    always = count + rows  # above any column, but the compiler cannot know it
    begin = tl.multiple_of(split * per_split, 16)
    for first in range(begin, tl.minimum(begin + per_split, count), BK):
        if WHOLE:  # the noise is drawn while the matrix unit works, as in `_assign`
            e = tl.trans(load_tile(e_ptr, first, 0, D, BK, BD))
            products = tl.dot(both, e, products, input_precision=PRECISION)
        else:
            z, da = pair_products(x_ptr, grad_ptr, e_ptr, row, first, D, BM, BK, BD, PRECISION)
        re = tl.load(re_ptr + first + tl.arange(0, BK))
        se = tl.load(se_ptr + first + tl.arange(0, BK))
        noise = draw_noise(noise_ptr, noise_m, noise_k, seed, row, first, count, NOISE, BM, BK)
        if WHOLE:
            z = noise
            da = noise
            if first < always:
                z, da = split_pair(products)
                products = tl.zeros([2 * BM, BK], tl.float32)
        z = z * re[None, :]
        a = exp2_of(z * scale[:, None] - noise - normalizer[:, None])
        if first + BK > count:
            a = tl.where((first + tile_columns(BK) < count)[None, :], a, 0.0)
        product = a * (da * se[None, :] - chosen[:, None])
        total += tl.sum(a, 1)
        delta += tl.sum(product, 1)
        mean += tl.sum(a * z, 1)
        along += tl.sum(product * z, 1)
        if BOUND:
            largest = tl.maximum(largest, tl.max(tl.abs(product) * re[None, :], 1))
            heaviest = tl.maximum(heaviest, tl.max(a * re[None, :], 1))
    mean *= rx
    along *= rx
    if SPLIT:
        size = tl.num_programs(1).to(tl.int64) * rows
        at = sums_ptr + split.to(tl.int64) * rows + place
        tl.store(at, total, mask=live)
        tl.store(at + size, delta, mask=live)
        tl.store(at + 2 * size, mean, mask=live)
        tl.store(at + 3 * size, along, mask=live)
        if BOUND:
            tl.store(at + 4 * size, largest, mask=live)
            tl.store(at + 5 * size, heaviest, mask=live)
    else:
        _store_state(
            state_ptr, all_rows, row, live, saved, total, delta, mean, along, largest, heaviest, BOUND
        )  # fmt: skip


@cache_launches(do_not_specialize=["rows", "above", "all_rows", "splits"])
def _join_delta(
    normalizer_ptr,  # [M] as saved
    sums_ptr,  # [6, S, m] float32, as `_delta` writes them
    state_ptr,  # [5, M] float32
    rows,  # m, which are joined
    above,  # rows before them
    all_rows,  # M
    splits,
    BOUND: tl.constexpr,
    R: tl.constexpr,
):
    """One program: joins the sums of all splits in ascending order for R rows."""
    place = tl.program_id(0) * R + tl.arange(0, R)
    live = place < rows
    total = tl.zeros([R], tl.float32)
    delta = tl.zeros([R], tl.float32)
    mean = tl.zeros([R], tl.float32)
    along = tl.zeros([R], tl.float32)
    largest = tl.zeros([R], tl.float32)
    heaviest = tl.zeros([R], tl.float32)
    size = splits.to(tl.int64) * rows
    for split in range(0, splits):
        at = sums_ptr + place.to(tl.int64) + split * rows.to(tl.int64)
        total += tl.load(at, mask=live, other=1.0)
        delta += tl.load(at + size, mask=live, other=0.0)
        mean += tl.load(at + 2 * size, mask=live, other=0.0)
        along += tl.load(at + 3 * size, mask=live, other=0.0)
        if BOUND:
            largest = tl.maximum(largest, tl.load(at + 4 * size, mask=live, other=0.0))
            heaviest = tl.maximum(heaviest, tl.load(at + 5 * size, mask=live, other=0.0))
    row = above + place
    saved = tl.load(normalizer_ptr + row, mask=live, other=0.0)
    _store_state(state_ptr, all_rows, row, live, saved, total, delta, mean, along, largest, heaviest, BOUND)
