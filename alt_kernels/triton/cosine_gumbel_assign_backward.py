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

from .cosine_gumbel_assign_delta import _delta, _join_delta, load_pair, pair_products, split_pair
from .cosine_gumbel_assign_entities import STEM, _entity_values, _grad_entities, finish
from .cosine_gumbel_assign_shared import (
    LOG2E,
    TENSOR,
    draw_noise,
    load_rows,
    load_tile,
    new_aligned,
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
from .host import divide_up, refuse_double
from .launch import cache_launches
from .philox import tile_columns


@cache_launches(do_not_specialize=["rows", "count", "above", "per_split"])
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
    normalizer_ptr,  # [M], corrected
    chosen_ptr,  # [M]
    delta_ptr,  # [M]
    q_ptr,  # [M]
    bound_ptr,  # [M] float32, read where BOUND: |dl| / |s| is at most this
    part_ptr,  # [S, M, d] float32: sums over a split of dl v / (tau |x|), the first minus u q; dx where S is 1
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
    DV: tl.constexpr,
):
    """One program: DV channels of dx of BM rows, over the entities of one split."""
    split = tl.program_id(1)
    place = tl.program_id(0) * BM + tl.arange(0, BM)
    live = place < rows
    row = tl.minimum(place, rows - 1)
    rx = tl.load(rx_ptr + row)
    normalizer = tl.load(normalizer_ptr + row) * LOG2E - noise_shift(NOISE)
    chosen = tl.load(chosen_ptr + row)
    delta = tl.load(delta_ptr + row)
    sharpness = 1.0 / tl.load(tau_ptr).to(tl.float32)
    seed = tl.load(seed_ptr) if NOISE == 2 else 0
    value_start = tl.program_id(2) * DV
    unit = tl.full([BM], 1.0, tl.float32)
    if BOUND:
        unit = power_below(tl.maximum(tl.load(bound_ptr + row), 1e-30)) * 0.0001220703125  # dl / unit <= 2^14
    WHOLE: tl.constexpr = BD >= D
    if WHOLE:
        both = load_pair(x_ptr, grad_ptr, tl.program_id(0) * BM, rows, D, BD, BM)
    # Subtract the component along x first; doing it last spills registers.
    share = tl.load(q_ptr + row) * rx / unit
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
        noise = draw_noise(noise_ptr, noise_m, noise_k, seed, row, above, first, count, NOISE, BM, BK)
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
    out = split.to(tl.int64) * rows + place
    channel = value_start + tl.arange(0, DV)
    acc = acc * (unit * factor)[:, None]
    target = part_ptr + out[:, None] * D + channel[None, :]
    tl.store(target, acc.to(part_ptr.dtype.element_ty), mask=live[:, None] & (channel < D)[None, :])


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
    ready = prepare(x, entities, copy_all=True)
    grad = grad.to(ready.dtype).contiguous()
    saved, index = log_normalizer.contiguous(), index.contiguous()
    kind, noise, seed, *strides = noise_arguments(noise, seed, ready.rx)
    bounded = ready.dtype == torch.float16
    common = {"D": depth, "NOISE": kind, "BOUND": bounded, "PRECISION": precision(ready.dtype)}

    use = with_noise(select_config(STEM, "delta", depth, ready.dtype), kind)
    normalizer, chosen, delta, q, bound = new_aligned(saved, 5, rows).unbind(0)
    for here, tiles, splits, share in row_plan(rows, use, 1, count):
        height = here.stop - here.start
        sums = new_aligned(saved, 6, splits, height).unbind(0)
        _delta[(tiles, splits)](
            grad[here], ready.x[here], ready.entities, ready.rx[here], ready.re, ready.se, tau,
            noise[here] if kind == TENSOR else noise, seed, index[here], saved[here], chosen[here], *sums,
            height, count, here.start, share, *strides, **common, **tiling(use),
        )  # fmt: skip
        _join_delta[(divide_up(height, 128),)](
            saved[here], *sums, normalizer[here], delta[here], q[here], bound[here], height, splits,
            BOUND=bounded, R=128, num_warps=4, num_stages=1,
        )  # fmt: skip

    use = with_noise(select_config(STEM, "rows", depth, ready.dtype), kind)
    wide = divide_up(depth, use["DV"])
    for here, tiles, splits, share in row_plan(rows, use, wide, count):
        part = grad_x[here]
        if splits > 1:
            part = normalizer.new_empty((splits, here.stop - here.start, depth))
        _grad_x[(tiles, splits, wide)](
            grad[here], ready.x[here], ready.entities, ready.rx[here], ready.re, ready.sx[here], ready.se, tau,
            noise[here] if kind == TENSOR else noise, seed, normalizer[here], chosen[here], delta[here], q[here],
            bound[here], part, here.stop - here.start, count, here.start, share, *strides, **common, **tiling(use),
        )  # fmt: skip
        if splits > 1:
            grad_x[here] = part.sum(0)
    grad_tau = (-q.sum() / tau.float().square()).to(tau.dtype)
    if not need_entities:
        return grad_x, grad_entities, grad_tau

    if bounded:
        bound = (bound * ready.rx).amax()
    use = with_noise(select_config(STEM, "entities", depth, ready.dtype), kind)
    tiles, wide = divide_up(count, use["BK"]), divide_up(depth, use["DV"])
    splits, share = split_plan(rows, use["BM"], tiles * wide, use.pop("programs"))
    value_use = with_noise(select_config(STEM, "values", depth, ready.dtype), kind)
    value_tiles, value_wide = divide_up(count, value_use["BK"]), divide_up(depth, value_use["DV"])
    value_splits, value_share = split_plan(rows, value_use["BM"], value_tiles * value_wide, value_use.pop("programs"))
    part = normalizer.new_empty((splits + value_splits, count, depth))
    along = normalizer.new_zeros((splits + value_splits, count))  # 0 for the value path, which is not projected
    _grad_entities[(tiles, splits, wide)](
        grad, ready.x, ready.entities, ready.rx, ready.re, ready.se, tau, noise, seed, normalizer,
        chosen, delta, bound, part, along, rows, count, share, *strides, **common, **use,
    )  # fmt: skip
    del common["BOUND"]
    _entity_values[(value_tiles, value_splits, value_wide)](
        grad, ready.x, ready.entities, ready.rx, ready.re, tau, noise, seed, index, normalizer,
        part[splits:], rows, count, value_share, *strides,
        HARD=hard, SPARSE=hard and count > value_use["BM"] * value_use["BK"], **common, **value_use,
    )  # fmt: skip
    finish(part, along, ready.entities, ready.re, ready.se, tau, grad_entities)
    return grad_x, grad_entities, grad_tau
