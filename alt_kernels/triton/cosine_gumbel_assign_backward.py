r"""Derivative of cosine-Gumbel assignment in Triton: logits and noise are recomputed tile by tile, without atomics.

Symbols as in cosine_gumbel_assign.py; dO the incoming gradient, u, v the unit rows of x and of the entities, w = u . v,
a = exp(l - log-normalizer), b the chosen entity of a row, T splits of the rows.

    dA = dO S^T    c_i = dA_ib    A_ik = a_ik / sum_k a_ik    delta_i = sum_k A_ik (dA_ik - c_i)
    dl_ik = A_ik ((dA_ik - c_i) - delta_i)
    dx_i = (sum_k dl_ik v_k - u_i q_i) / (tau |x_i|)         q_i = sum_k dl_ik w_ik = u_i . sum_k dl_ik v_k
    ds_k = (sum_i dl_ik u_i - v_k h_k) / (tau |s_k|) + sum_i W_ik dO_i    h_k = sum_i dl_ik w_ik
    dtau = -sum_i q_i / tau^2                                W = onehot (hard) or A (soft)

Sweeps over M K: ``_delta`` (cosine_gumbel_assign_delta.py, 2 products), ``_grad_x`` (3) and, on request,
``_grad_entities`` (3) and ``_entity_values`` (hard 1 without noise, soft 2). That is 5 products for x alone, 9 (hard)
or 10 (soft) with the entities, each 2 M K d FLOP. The noise is drawn two, three or (soft) four times. Where DV < d,
logits are recomputed for every DV channels.

The a of a row do not sum to 1: these logits come from another product than the forward's, and their rounding is divided
by tau. ``_join_delta`` corrects the log-normalizer, and the sweeps after it compute A. Without c, all of dA_ib would
cancel where A_ib is near 1 (docs/kernels.md, "Small tau").

``_delta`` also sums a w and a (dA - c) w, so that q_i = sum_k A (dA - c) w - delta_i sum_k A w is known before
``_grad_x``, which starts from -u q. The hard value path is an exact product with the one-hot W, so an entity that every
row chooses costs no more than another. The sweeps for x keep a tile of rows and stream the entities. The two for the
entities (cosine_gumbel_assign_entities.py) keep a tile of entities and stream the rows; their splits write partial
sums, which ``_finish`` adds in a fixed order and projects. torch adds the sums over splits of rows.

dl and A are rounded to the inputs' dtype for their products, as in flash attention. In float16 dl is scaled by a power
of two from the bound of its row (for an entity's sum, of any row), so it neither overflows nor underflows.
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from .cosine_gumbel_assign_delta import (
    BOUND_OF_DL,
    CHOSEN,
    DELTA,
    NORMALIZER,
    STATE,
    SUMS,
    Q,
    _delta,
    _join_delta,
    load_pair,
    pair_products,
    split_pair,
    state_of,
)
from .cosine_gumbel_assign_entities import STEM, _entity_values, _grad_entities, finish
from .cosine_gumbel_assign_shared import (
    LOG2E,
    draw_noise,
    load_rows,
    load_tile,
    noise_arguments,
    noise_shift,
    power_below,
    precision,
    prepare,
    row_plan,
    select_config,
    split_plan,
    tiling,
    with_noise,
)
from .hardware import exp2_of
from .host import divide_up, refuse_double, round_up_to_power
from .launch import cache_launches
from .philox import tile_columns


@cache_launches(do_not_specialize=["rows", "count", "above", "all_rows", "per_split"])
def _grad_x(
    grad_ptr,  # [M, d] contiguous
    x_ptr,  # [M, d] prepared
    e_ptr,  # [P, d] prepared
    rx_ptr,  # [M]
    re_ptr,  # [P]
    sx_ptr,  # [M]
    se_ptr,  # [P]
    tau_ptr,  # 0-d
    noise_ptr,  # [M, K], read where NOISE is 1
    seed_ptr,  # 0-d, read where NOISE is 2
    state_ptr,  # [5, M], as `_delta` leaves it
    part_ptr,  # [M, d]: dx; where SPLIT [S, m, d] float32: sums over a split of dl v / (tau |x|), the first minus u q
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
    DV: tl.constexpr,
):
    """One program: DV channels of dx of BM rows, over the entities of one split."""
    split = tl.program_id(1)
    place = tl.program_id(0) * BM + tl.arange(0, BM)
    live = place < rows
    row = above + tl.minimum(place, rows - 1)
    rx = tl.load(rx_ptr + row)
    normalizer = tl.load(state_of(state_ptr, NORMALIZER, all_rows) + row) * LOG2E - noise_shift(NOISE)
    chosen = tl.load(state_of(state_ptr, CHOSEN, all_rows) + row)
    delta = tl.load(state_of(state_ptr, DELTA, all_rows) + row)
    sharpness = 1.0 / tl.load(tau_ptr).to(tl.float32)
    seed = tl.load(seed_ptr) if NOISE == 2 else 0
    value_start = tl.program_id(2) * DV
    unit = tl.full([BM], 1.0, tl.float32)
    if BOUND:
        bound = tl.load(state_of(state_ptr, BOUND_OF_DL, all_rows) + row)
        unit = power_below(tl.maximum(bound, 1e-30)) * 0.0001220703125  # dl / unit <= 2^14
    WHOLE: tl.constexpr = BD >= D
    if WHOLE:
        both = load_pair(x_ptr, grad_ptr, above, tl.program_id(0) * BM, rows, D, BD, BM)
    # Subtract the component along x first; doing it last spills registers.
    share = tl.load(state_of(state_ptr, Q, all_rows) + row) * rx / unit
    own = load_rows(x_ptr, row, value_start, D, DV).to(tl.float32)
    acc = own * tl.where(split == 0, -share, 0.0)[:, None]
    begin = tl.multiple_of(split * per_split, 16)
    for first in range(begin, tl.minimum(begin + per_split, count), BK):
        if WHOLE:
            e = load_tile(e_ptr, first, 0, D, BK, BD)
            cosine, da = split_pair(tl.dot(both, tl.trans(e), input_precision=PRECISION))
        else:
            cosine, da = pair_products(x_ptr, grad_ptr, e_ptr, row, first, D, BM, BK, BD, PRECISION)
        re = tl.load(re_ptr + first + tl.arange(0, BK))
        se = tl.load(se_ptr + first + tl.arange(0, BK))
        noise = draw_noise(noise_ptr, noise_m, noise_k, seed, row, first, count, NOISE, BM, BK)
        a = exp2_of(cosine * (rx * sharpness * LOG2E)[:, None] * re[None, :] - noise - normalizer[:, None])
        if first + BK > count:
            a = tl.where((first + tile_columns(BK) < count)[None, :], a, 0.0)
        dl = a * ((da * se[None, :] - chosen[:, None]) - delta[:, None]) * re[None, :]
        if BOUND:
            dl = dl * (1.0 / unit)[:, None]
        if WHOLE and DV == BD:
            values = e
        else:
            values = load_tile(e_ptr, first, value_start, D, BK, DV)
        acc = tl.dot(dl.to(values.dtype), values, acc, input_precision=PRECISION)

    factor = rx * sharpness / tl.load(sx_ptr + row)
    if SPLIT:
        out = split.to(tl.int64) * rows + place
    else:
        out = above.to(tl.int64) + place
    channel = value_start + tl.arange(0, DV)
    acc = acc * (unit * factor)[:, None]
    target = part_ptr + out[:, None] * D + channel[None, :]
    tl.store(target, acc.to(part_ptr.dtype.element_ty), mask=live[:, None] & (channel < D)[None, :])


@cache_launches(do_not_specialize=["rows", "above", "all_rows", "splits"])
def _finish_rows(
    part_ptr,  # [S, m, d] float32
    state_ptr,  # [5, M]
    tau_ptr,  # 0-d
    out_ptr,  # [M, d]: dx
    grad_tau_ptr,  # 0-d
    rows,  # m, whose partial sums are added; there may be none
    above,  # rows before them
    all_rows,  # M
    splits,
    D: tl.constexpr,
    R: tl.constexpr,
    BC: tl.constexpr,
):
    """The first program: dtau. Every other: BC channels of R rows, the partial sums in ascending order."""
    program = tl.program_id(0)
    if program == 0:
        SUM: tl.constexpr = 4096
        q_ptr = state_of(state_ptr, Q, all_rows)
        sums = tl.zeros([SUM], tl.float32)
        for first in range(0, all_rows, SUM):
            at = first + tl.arange(0, SUM)
            sums += tl.load(q_ptr + at, mask=at < all_rows, other=0.0)
        tau = tl.load(tau_ptr).to(tl.float32)
        tl.store(grad_tau_ptr, (-tl.sum(sums, 0) / (tau * tau)).to(grad_tau_ptr.dtype.element_ty))
    else:
        ACROSS: tl.constexpr = (D + BC - 1) // BC
        place = (program - 1) // ACROSS * R + tl.arange(0, R)
        channel = (program - 1) % ACROSS * BC + tl.arange(0, BC)
        inside = (place < rows)[:, None] & (channel < D)[None, :]
        at = place.to(tl.int64)
        acc = tl.zeros([R, BC], tl.float32)
        for split in range(0, splits):
            here = at + split * rows.to(tl.int64)
            acc += tl.load(part_ptr + here[:, None] * D + channel[None, :], mask=inside, other=0.0)
        target = out_ptr + (at + above)[:, None] * D + channel[None, :]
        tl.store(target, acc.to(out_ptr.dtype.element_ty), mask=inside)


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
    grad_x = x.new_empty(rows, depth)
    grad_entities = entities.new_empty(*(count, depth) if need_entities else (0,))
    grad_tau = tau.new_empty(())
    if rows == 0:
        return grad_x, grad_entities.zero_(), grad_tau.zero_()
    ready = prepare(x, entities, copy_all=True)
    if grad.dtype != ready.dtype:
        grad = grad.to(ready.dtype)
    grad = grad.contiguous()
    saved, index = log_normalizer.contiguous(), index.contiguous()
    kind, noise, seed, *strides = noise_arguments(noise, seed, ready.rx)
    bounded = ready.dtype == torch.float16
    common = {"D": depth, "NOISE": kind, "BOUND": bounded, "PRECISION": precision(ready.dtype)}
    state = saved.new_empty(STATE, rows)

    use = with_noise(select_config(STEM, "delta", depth, ready.dtype), kind)
    constants = common | tiling(use)
    for above, height, tiles, splits, share in row_plan(rows, use, 1, count):
        sums = saved.new_empty(SUMS, splits, height) if splits > 1 else state
        _delta[(tiles, splits)](
            grad, ready.x, ready.entities, ready.rx, ready.re, ready.se, tau, noise, seed, index, saved, state, sums,
            height, count, above, rows, share, *strides, SPLIT=splits > 1, **constants,
        )  # fmt: skip
        if splits > 1:
            _join_delta[(divide_up(height, 128),)](
                saved, sums, state, height, above, rows, splits, BOUND=bounded, R=128, num_warps=4, num_stages=1
            )

    use = with_noise(select_config(STEM, "rows", depth, ready.dtype), kind)
    constants = common | tiling(use)
    wide = divide_up(depth, use["DV"])
    rest: tuple[Tensor, int, int, int] = state, 0, 0, 0  # the rows whose partial sums have still to be added
    for above, height, tiles, splits, share in row_plan(rows, use, wide, count):
        part = grad_x
        if splits > 1:
            part = state.new_empty(splits, height, depth)
            rest = part, height, above, splits
        _grad_x[(tiles, splits, wide)](
            grad, ready.x, ready.entities, ready.rx, ready.re, ready.sx, ready.se, tau, noise, seed, state, part,
            height, count, above, rows, share, *strides, SPLIT=splits > 1, **constants,
        )  # fmt: skip
    part, height, above, splits = rest
    width = min(128, round_up_to_power(depth))
    _finish_rows[(1 + divide_up(height, 16) * divide_up(depth, width),)](
        part, state, tau, grad_x, grad_tau, height, above, rows, splits,
        D=depth, R=16, BC=width, num_warps=4, num_stages=1,
    )  # fmt: skip
    if not need_entities:
        return grad_x, grad_entities, grad_tau

    bound = (state[BOUND_OF_DL.value] * ready.rx).amax() if bounded else state
    use = with_noise(select_config(STEM, "entities", depth, ready.dtype), kind)
    tiles, wide = divide_up(count, use["BK"]), divide_up(depth, use["DV"])
    splits, share = split_plan(rows, use["BM"], tiles * wide, use["programs"])
    value_use = with_noise(select_config(STEM, "values", depth, ready.dtype), kind)
    value_tiles, value_wide = divide_up(count, value_use["BK"]), divide_up(depth, value_use["DV"])
    value_splits, value_share = split_plan(rows, value_use["BM"], value_tiles * value_wide, value_use["programs"])
    part = state.new_empty((splits + value_splits, count, depth))
    along = state.new_zeros((splits + value_splits, count))  # 0 for the value path, which is not projected
    _grad_entities[(tiles, splits, wide)](
        grad, ready.x, ready.entities, ready.rx, ready.re, ready.se, tau, noise, seed, state, bound,
        part, along, rows, count, share, *strides, **common, **tiling(use),
    )  # fmt: skip
    del common["BOUND"]
    _entity_values[(value_tiles, value_splits, value_wide)](
        grad, ready.x, ready.entities, ready.rx, ready.re, tau, noise, seed, index, state,
        part[splits:], rows, count, value_share, *strides,
        HARD=hard, SPARSE=hard and count > value_use["BM"] * value_use["BK"], **common, **tiling(value_use),
    )  # fmt: skip
    finish(part, along, ready.entities, ready.re, ready.se, tau, grad_entities)
    return grad_x, grad_entities, grad_tau
