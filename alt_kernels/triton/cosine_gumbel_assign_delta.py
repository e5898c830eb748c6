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
def load_pair(x_ptr, grad_ptr, first, rows, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr):
    """Loads BM rows of x and of dO as one operand ``[2 BM, BD]``: eight of x, the same eight of dO, the next of x.

    A thread holds the places i and i + 8 of 16 rows of a product, so it has both the cosine and the dA of a row. A warp
    group reads one operand of 128 rows from shared memory twice as fast as two of 64.
    """
    place = tl.arange(0, 2 * BM)
    row = tl.minimum(first + (place // 16) * 8 + place % 8, rows - 1)
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


@cache_launches(do_not_specialize=["rows", "count", "above", "per_split"])
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
    chosen_ptr,  # [M] float32: c
    total_ptr,  # [S, M] float32: sum over the split of a
    delta_ptr,  # [S, M] float32: of a (dA - c)
    mean_ptr,  # [S, M] float32: of a w
    along_ptr,  # [S, M] float32: of a (dA - c) w
    largest_ptr,  # [S, M] float32, written where BOUND: max of a |dA - c| / |s|
    weight_ptr,  # [S, M] float32, written where BOUND: max of a / |s|
    rows,  # of this launch; pointers to rows are to its first
    count,
    above,  # rows before this launch
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
    """One program: the sums behind delta and q of BM rows, over the entities of one split."""
    split = tl.program_id(1)
    place = tl.program_id(0) * BM + tl.arange(0, BM)
    live = place < rows
    row = tl.minimum(place, rows - 1)
    normalizer = tl.load(normalizer_ptr + row) * LOG2E - noise_shift(NOISE)
    rx = tl.load(rx_ptr + row)
    scale = rx * (LOG2E / tl.load(tau_ptr).to(tl.float32))
    seed = tl.load(seed_ptr) if NOISE == 2 else 0
    chosen = _chosen_grad(grad_ptr, e_ptr, se_ptr, index_ptr, row, count, D, BM)
    tl.store(chosen_ptr + place, chosen, mask=live & (split == 0))
    total = tl.zeros([BM], tl.float32)
    delta = tl.zeros([BM], tl.float32)
    mean = tl.zeros([BM], tl.float32)
    along = tl.zeros([BM], tl.float32)
    largest = tl.zeros([BM], tl.float32)
    heaviest = tl.zeros([BM], tl.float32)
    WHOLE: tl.constexpr = BD >= D
    if WHOLE:
        both = load_pair(x_ptr, grad_ptr, tl.program_id(0) * BM, rows, D, BD, BM)
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
        noise = draw_noise(noise_ptr, noise_m, noise_k, seed, row, above, first, count, NOISE, BM, BK)
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
    out = split.to(tl.int64) * rows + place
    tl.store(total_ptr + out, total, mask=live)
    tl.store(delta_ptr + out, delta, mask=live)
    tl.store(mean_ptr + out, mean * rx, mask=live)
    tl.store(along_ptr + out, along * rx, mask=live)
    if BOUND:
        tl.store(largest_ptr + out, largest, mask=live)
        tl.store(weight_ptr + out, heaviest, mask=live)


@cache_launches(do_not_specialize=["rows", "splits"])
def _join_delta(
    normalizer_ptr,  # [M] as saved
    total_ptr,  # [S, M] float32; this and the next five as `_delta` writes them
    delta_part_ptr,
    mean_ptr,
    along_ptr,
    largest_ptr,
    weight_ptr,
    corrected_ptr,  # [M] float32: the log-normalizer with which A sums to 1
    delta_ptr,  # [M] float32
    q_ptr,  # [M] float32
    bound_ptr,  # [M] float32, written where BOUND: |dl| / |s| is at most this
    rows,
    splits,
    BOUND: tl.constexpr,
    R: tl.constexpr,
):
    """One program: joins the sums of all splits in ascending order for R rows."""
    row = tl.program_id(0) * R + tl.arange(0, R)
    live = row < rows
    total = tl.zeros([R], tl.float32)
    delta = tl.zeros([R], tl.float32)
    mean = tl.zeros([R], tl.float32)
    along = tl.zeros([R], tl.float32)
    largest = tl.zeros([R], tl.float32)
    heaviest = tl.zeros([R], tl.float32)
    for split in range(0, splits):
        here = row.to(tl.int64) + split * rows.to(tl.int64)
        total += tl.load(total_ptr + here, mask=live, other=1.0)
        delta += tl.load(delta_part_ptr + here, mask=live, other=0.0)
        mean += tl.load(mean_ptr + here, mask=live, other=0.0)
        along += tl.load(along_ptr + here, mask=live, other=0.0)
        if BOUND:
            largest = tl.maximum(largest, tl.load(largest_ptr + here, mask=live, other=0.0))
            heaviest = tl.maximum(heaviest, tl.load(weight_ptr + here, mask=live, other=0.0))
    # A tau below about 2.4e-7 leaves logits without a digit after the point, of which no two sweeps make the same sum.
    # Then A is one-hot to the last digit, its gradient is 0, and so is a = exp(l - inf) of the next sweeps. NaN stays.
    saved = tl.load(normalizer_ptr + row, mask=live, other=0.0)
    lost = (total == 0.0) | (total == float("inf")) | (tl.abs(saved) >= 4194304.0)
    lost = lost & (total == total)
    safe = tl.where(lost, 1.0, total)
    delta = tl.where(lost, 0.0, delta / safe)
    q = tl.where(lost, 0.0, (along - delta * mean) / safe)
    correction = tl.where(lost, float("inf"), tl.log2(safe) * NATURAL)
    tl.store(corrected_ptr + row, saved + correction, mask=live)
    tl.store(delta_ptr + row, delta, mask=live)
    tl.store(q_ptr + row, q, mask=live)
    if BOUND:
        bound = tl.where(lost, 0.0, (largest + tl.abs(delta) * heaviest) / safe)
        tl.store(bound_ptr + row, bound, mask=live)
