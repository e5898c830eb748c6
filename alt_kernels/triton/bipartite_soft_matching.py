"""Bipartite soft matching in Triton: one kernel per image up to 512 tokens, three kernels over tiles above.

Symbols: B images, N tokens, P of them protected, |A| even and |B| odd ones among the rest, C channels, H heads;
BA rows of A and BB rows of B in a tile of scores, BC channels of a tile. i indexes A, j indexes B: the token of a_i is
``first even + 2 i``. No score is ever written to memory; the tiled path has 8 bytes of scratch per token of A.

Floor: reads the metric once, B N C elements, 2 B |A| |B| C FLOPs, writes 12 B N bytes; in practice it is bound by
latency. The order of the pairs is a rank by counting, n^2 compares in registers. There is no sort and no atomic, and
the order is total, so every run gives the same bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .bipartite_soft_matching_scores import best_of_rows
from .host import divide_up, refuse_double, round_up_to_power, unit_stride
from .launch import cache_launches
from .launch_configs import config

# Buckets of the configuration. Up to 512 tokens one program matches an image, in a tile of half as many rows: this
# takes two compilations, not one for every N.
TOKENS = (256, 512, 8192)
ONE_PROGRAM = 512
CHANNELS = (64, 128, 1024)
RANK_ROWS, RANK_OTHERS = 128, 64  # tile of compares of the kernels that count
NO_TARGET: tl.constexpr = tl.constexpr(0x7FFFFFFF)  # stands for j where a is kept


@triton.jit
def _write_plan(
    indices_ptr,
    offsets_ptr,
    output_row_ptr,  # of the image
    i,  # [BA]: these a's, and the b's of the same number
    merged,
    partner,
    kept_before,  # kept a's before i
    pairs_before,  # pairs before that of a_i, ordered by b, then by a; read where merged
    into_before,  # pairs whose b is before b_i
    tokens,
    even,
    odd,
    r,
    num_protected,
):
    """Writes the places of a_i and b_i. Rows: protected, kept A, B; before the first b every row has one token."""
    row_of_b = num_protected + even - r
    token = num_protected + num_protected % 2 + 2 * i
    row = tl.where(merged, row_of_b + partner, num_protected + kept_before)
    slot = tl.where(merged, row + 1 + pairs_before, row)
    tl.store(output_row_ptr + token, row, mask=i < even)
    tl.store(indices_ptr + slot, token, mask=i < even)
    tl.store(offsets_ptr + row, row, mask=(i < even) & ~merged)

    token = num_protected + 1 - num_protected % 2 + 2 * i
    row = row_of_b + i
    slot = row + into_before
    tl.store(output_row_ptr + token, row, mask=i < odd)
    tl.store(indices_ptr + slot, token, mask=i < odd)
    tl.store(offsets_ptr + row, slot, mask=i < odd)
    tl.store(offsets_ptr + (tokens - r) + i, tokens, mask=i == 0)


@triton.jit
def _write_protected(indices_ptr, offsets_ptr, output_row_ptr, token, num_protected):
    tl.store(indices_ptr + token, token, mask=token < num_protected)
    tl.store(offsets_ptr + token, token, mask=token < num_protected)
    tl.store(output_row_ptr + token, token, mask=token < num_protected)


@triton.jit
def _count(before):
    """Counts the true entries of [others, BA] per column; a thread holds most of the axis that is summed."""
    return tl.sum(before.to(tl.int32), 0)


@cache_launches(do_not_specialize=["tokens", "r", "num_protected"])
def _match_image(
    x_ptr,  # [B, N, C], strides (x_b, x_n, 1); where HEADS > 1 [B, H, N, C], strides (x_b, x_h, x_n, 1)
    indices_ptr,  # [B, N] int32
    offsets_ptr,  # [B, N - r + 1] int32
    output_row_ptr,  # [B, N] int32
    tokens,  # at most 2 BA
    r,
    num_protected,
    x_b,
    x_n,
    x_h,
    C: tl.constexpr,
    HEADS: tl.constexpr,
    BA: tl.constexpr,
    BB: tl.constexpr,
    BC: tl.constexpr,
    BO: tl.constexpr,
):
    """One program: the plan of one image."""
    image = tl.program_id(0).to(tl.int64)
    even = (tokens + 1) // 2 - (num_protected + 1) // 2
    odd = tokens // 2 - num_protected // 2
    i = tl.arange(0, BA)
    best, partner = best_of_rows(x_ptr + image * x_b, i, even, odd, num_protected, x_n, x_h, C, HEADS, BA, BB, BC)
    # Rows past |A| score -inf and have the highest i: r <= |A| live ones come before them.
    rank = tl.zeros([BA], tl.int32)
    for start in range(0, even, BO):
        other = start + tl.arange(0, BO)
        theirs = tl.gather(best, other, 0)[:, None]
        rank += _count((theirs > best[None, :]) | ((theirs == best[None, :]) & (other[:, None] < i[None, :])))
    merged = rank < r
    kept = (~merged).to(tl.int32)
    pair = tl.where(merged, partner * BA + i, NO_TARGET)  # by b, then by a
    pairs_before = tl.zeros([BA], tl.int32)
    into_before = tl.zeros([BA], tl.int32)
    for start in range(0, even, BO):
        theirs = tl.gather(pair, start + tl.arange(0, BO), 0)[:, None]
        pairs_before += _count(theirs < pair[None, :])
        into_before += _count(theirs < (i * BA)[None, :])

    indices_ptr += image * tokens
    offsets_ptr += image * (tokens - r + 1)
    output_row_ptr += image * tokens
    _write_protected(indices_ptr, offsets_ptr, output_row_ptr, tl.arange(0, 2 * BA), num_protected)
    _write_plan(
        indices_ptr, offsets_ptr, output_row_ptr, i, merged, partner, tl.cumsum(kept, 0) - kept,
        pairs_before, into_before, tokens, even, odd, r, num_protected,
    )  # fmt: skip


@cache_launches(do_not_specialize=["tokens", "num_protected", "even"])
def _match_tiles(
    x_ptr,  # [B, N, C], strides (x_b, x_n, 1)
    best_ptr,  # [B, |A|] float32
    partner_ptr,  # [B, |A|] int32
    tokens,
    num_protected,
    even,
    x_b,
    x_n,
    C: tl.constexpr,
    BA: tl.constexpr,
    BB: tl.constexpr,
    BC: tl.constexpr,
):
    """One program: BA rows of A of one image against all of its B."""
    image = tl.program_id(0).to(tl.int64)
    odd = tokens // 2 - num_protected // 2
    i = tl.program_id(1) * BA + tl.arange(0, BA)
    best, partner = best_of_rows(x_ptr + image * x_b, i, even, odd, num_protected, x_n, 0, C, 1, BA, BB, BC)
    tl.store(best_ptr + image * even + i, best, mask=i < even)
    tl.store(partner_ptr + image * even + i, partner, mask=i < even)


@cache_launches(do_not_specialize=["r", "even"])
def _rank_tiles(
    best_ptr,  # [B, |A|] float32
    partner_ptr,  # [B, |A|] int32; becomes NO_TARGET where a_i is kept
    r,
    even,
    BA: tl.constexpr,
    BO: tl.constexpr,
):
    """One program: the rank of BA rows of A among all of them, BO at a time."""
    image = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BA + tl.arange(0, BA)
    best_ptr += image * even
    mine = tl.load(best_ptr + i, mask=i < even, other=0.0)
    rank = tl.zeros([BA], tl.int32)
    for start in range(0, even, BO):
        other = start + tl.arange(0, BO)
        # -inf ties with -inf, but only those of a lower index count: past |A| there are none.
        theirs = tl.load(best_ptr + other, mask=other < even, other=float("-inf"))[:, None]
        rank += _count((theirs > mine[None, :]) | ((theirs == mine[None, :]) & (other[:, None] < i[None, :])))
    tl.store(partner_ptr + image * even + i, tl.full([BA], NO_TARGET, tl.int32), mask=(i < even) & (rank >= r))


@cache_launches(do_not_specialize=["tokens", "r", "num_protected", "even"])
def _plan_tiles(
    partner_ptr,  # [B, |A|] int32, NO_TARGET where a_i is kept
    indices_ptr,  # [B, N] int32
    offsets_ptr,  # [B, N - r + 1] int32
    output_row_ptr,  # [B, N] int32
    tokens,
    r,
    num_protected,
    even,
    BA: tl.constexpr,
    BO: tl.constexpr,
):
    """One program: the places of BA tokens of A, of as many of B, and of as many protected ones."""
    image = tl.program_id(0).to(tl.int64)
    odd = tokens // 2 - num_protected // 2
    i = tl.program_id(1) * BA + tl.arange(0, BA)
    partner_ptr += image * even
    partner = tl.load(partner_ptr + i, mask=i < even, other=NO_TARGET)
    merged = partner != NO_TARGET
    merged_before = tl.zeros([BA], tl.int32)
    pairs_before = tl.zeros([BA], tl.int32)
    into_before = tl.zeros([BA], tl.int32)
    for start in range(0, even, BO):
        other = start + tl.arange(0, BO)
        theirs = tl.load(partner_ptr + other, mask=other < even, other=NO_TARGET)[:, None]
        lower = other[:, None] < i[None, :]
        merged_before += _count((theirs != NO_TARGET) & lower)
        pairs_before += _count((theirs < partner[None, :]) | ((theirs == partner[None, :]) & lower))
        into_before += _count(theirs < i[None, :])

    indices_ptr += image * tokens
    offsets_ptr += image * (tokens - r + 1)
    output_row_ptr += image * tokens
    _write_protected(indices_ptr, offsets_ptr, output_row_ptr, i, num_protected)
    _write_plan(
        indices_ptr, offsets_ptr, output_row_ptr, i, merged, partner, i - merged_before,
        pairs_before, into_before, tokens, even, odd, r, num_protected,
    )  # fmt: skip


def _empty_plan(x: Tensor, tokens: int, r: int) -> tuple[Tensor, Tensor, Tensor]:
    indices = x.new_empty(x.shape[0], tokens, dtype=torch.int32)
    offsets = x.new_empty(x.shape[0], tokens - r + 1, dtype=torch.int32)
    return indices, offsets, torch.empty_like(indices)


def _identity(x: Tensor, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    indices, offsets, output_row = _empty_plan(x, tokens, 0)
    ends = torch.arange(tokens + 1, dtype=torch.int32, device=x.device)
    return indices.copy_(ends[:-1]), offsets.copy_(ends), output_row.copy_(ends[:-1])


def _sizes(tokens: int, channels: int, itemsize: int) -> dict[str, int]:
    """Returns the bucket of a problem; ``itemsize`` is that of the rows in the dot, 4 for sums over heads."""
    return {
        "tokens": next((limit for limit in TOKENS if tokens <= limit), TOKENS[-1]),
        "channels": next((limit for limit in CHANNELS if channels <= limit), CHANNELS[-1]),
        "itemsize": itemsize,
    }


def _blocks(tuned: dict[str, int], channels: int) -> dict[str, int]:
    """Returns C, BA, BB and BC, where BC is no wider than the row (a dot takes at least 16)."""
    width = max(16, round_up_to_power(channels))
    return {"C": channels, "BA": tuned["BA"], "BB": tuned["BB"], "BC": min(tuned["BC"], width)}


def _one_program(
    x: Tensor, heads: int, x_h: int, r: int, num_protected: int, tuned: dict[str, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the plan of ``x`` [B, N, C], or [B, H, N, C] for the mean over H, by one program per image."""
    tokens, channels = x.shape[-2:]
    plan = _empty_plan(x, tokens, r)
    _match_image[(x.shape[0],)](
        x, *plan, tokens, r, num_protected, x.stride(0), x.stride(-2), x_h,
        HEADS=heads, BO=RANK_OTHERS, **_blocks(tuned, channels),
        num_warps=tuned["num_warps"], num_stages=tuned["num_stages"],
    )  # fmt: skip
    return plan


def bipartite_matching(metric: Tensor, r: int, num_protected: int) -> tuple[Tensor, Tensor, Tensor]:
    """``metric`` [B, N, C] -> (indices [B, N], offsets [B, N - r + 1], output_row [B, N]), int32."""
    refuse_double(metric)
    batch, tokens, channels = metric.shape
    if r == 0:
        return _identity(metric, tokens)
    if batch == 0:
        return _empty_plan(metric, tokens, r)
    metric = unit_stride(metric)
    tuned = config("bipartite_soft_matching", **_sizes(tokens, channels, metric.element_size()))
    if tokens <= ONE_PROGRAM:
        return _one_program(metric, 1, 0, r, num_protected, tuned)

    even = (tokens + 1) // 2 - (num_protected + 1) // 2
    plan = _empty_plan(metric, tokens, r)
    best = torch.empty((batch, even), dtype=torch.float32, device=metric.device)
    partner = torch.empty((batch, even), dtype=torch.int32, device=metric.device)
    _match_tiles[(batch, divide_up(even, tuned["BA"]))](
        metric, best, partner, tokens, num_protected, even, metric.stride(0), metric.stride(1),
        **_blocks(tuned, channels), num_warps=tuned["num_warps"], num_stages=tuned["num_stages"],
    )  # fmt: skip
    tile = {"BA": RANK_ROWS, "BO": RANK_OTHERS, "num_warps": 4, "num_stages": 1}
    _rank_tiles[(batch, divide_up(even, RANK_ROWS))](best, partner, r, even, **tile)
    most = max(even, tokens // 2 - num_protected // 2, num_protected)
    _plan_tiles[(batch, divide_up(most, RANK_ROWS))](partner, *plan, tokens, r, num_protected, even, **tile)
    return plan


def bipartite_matching_from_keys(k: Tensor, r: int, num_protected: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the plan of ``k.mean(1, dtype=torch.float32)``, ``k`` [B, H, N, D] of any strides (packed QKV).

    Where one program does the image and one tile holds D, the kernel takes the mean from its only read of the keys.
    Elsewhere keys would be read again for every tile, so the mean is computed once, in float32.
    """
    refuse_double(k)
    batch, heads, tokens, channels = k.shape
    if heads < 1:
        raise ValueError(f"k: expected at least one head, got shape {list(k.shape)}")
    if heads == 1:
        return bipartite_matching(k[:, 0], r, num_protected)
    if r == 0:
        return _identity(k, tokens)
    if batch == 0:
        return _empty_plan(k, tokens, r)
    tuned = config("bipartite_soft_matching", **_sizes(tokens, channels, 4))
    if tokens > ONE_PROGRAM or channels > tuned["BC"]:
        return bipartite_matching(k.mean(1, dtype=torch.float32), r, num_protected)
    k = unit_stride(k)
    return _one_program(k, heads, k.stride(1), r, num_protected, tuned)
