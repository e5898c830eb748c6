"""Bipartite soft matching in Triton: one program or several per image up to 512 tokens, three kernels above.

Symbols: B images, N tokens, P of them protected, |A| even and |B| odd ones among the rest, C channels, H heads;
BA rows of A and BB rows of B in a tile of scores, BC channels of a tile. i indexes A, j indexes B: the token of a_i is
``first even + 2 i``. No matrix of scores is ever written to memory.

Floor: reads the metric once, B N C elements, 2 B |A| |B| C FLOPs, writes 12 B N bytes; in practice it is bound by
latency. The order of the pairs is a rank by counting, n^2 compares in registers. There is no sort and no atomic, and
the order is total, so every run gives the same bits.

One program per image leaves most of a GPU idle where there are few images. There, and above 512 tokens, programs take
tiles of A and parts of B and leave their best in scratch, 4 + 8 parts bytes per token of A; a second launch (above 512
tokens a third) joins the parts and plans. Joining gives the bits of one program (``best_of_rows``). A counter of
arrivals would save a launch, but would have to be cleared before every call and never be shared by two streams.
"""

from __future__ import annotations

import functools

import torch
import triton.language as tl
from torch import Tensor

from .bipartite_soft_matching_plan import NO_PAIR, write_image, write_places, write_protected
from .bipartite_soft_matching_scores import best_of_rows, load_best, store_best
from .hardware import one_if_equal, one_if_less
from .host import divide_up, refuse_double, round_up_to_power, unit_stride
from .launch import cache_launches
from .launch_configs import config

# Buckets of the configuration. Up to 512 tokens one program matches an image, in a tile of half as many rows: this
# takes two compilations, not one for every N.
TOKENS = (256, 512, 8192)
IMAGES = (32, 256)  # with eight programs for each of 32, two for each of 132 multiprocessors
ONE_PROGRAM = 512
CHANNELS = (64, 128, 1024)
RANK_ROWS, RANK_OTHERS = 128, 64  # tile of compares of the kernels that count


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
    best, partner, inverse = best_of_rows(
        x_ptr + image * x_b, i, even, 0, odd, num_protected, x_n, x_h, C, HEADS, BA, BB, BC
    )
    write_image(
        indices_ptr, offsets_ptr, output_row_ptr, image, best * inverse, partner, tokens, even, odd, r,
        num_protected, BA, BO,
    )  # fmt: skip


@cache_launches(do_not_specialize=["tokens", "num_protected", "even", "share"])
def _match_tiles(
    x_ptr,  # [B, N, C], strides (x_b, x_n, 1); where HEADS > 1 [B, H, N, C], strides (x_b, x_h, x_n, 1)
    scratch_ptr,  # [2 parts + 1, B, |A|] float32
    tokens,
    num_protected,
    even,
    share,  # rows of B of a part, a multiple of BB
    x_b,
    x_n,
    x_h,
    C: tl.constexpr,
    HEADS: tl.constexpr,
    BA: tl.constexpr,
    BB: tl.constexpr,
    BC: tl.constexpr,
):
    """One program: BA rows of A of one image against one part of its B."""
    image = tl.program_id(0).to(tl.int64)
    part = tl.program_id(2)
    i = tl.program_id(1) * BA + tl.arange(0, BA)
    first_j = part * share
    odd = tl.minimum(tokens // 2 - num_protected // 2, first_j + share)
    found = best_of_rows(x_ptr + image * x_b, i, even, first_j, odd, num_protected, x_n, x_h, C, HEADS, BA, BB, BC)
    plane = tl.num_programs(0).to(tl.int64) * even
    store_best(scratch_ptr + image * even, i, even, plane, part, tl.num_programs(2), found[0], found[1], found[2])


@cache_launches(do_not_specialize=["tokens", "r", "num_protected", "parts"])
def _finish_image(
    scratch_ptr,  # [2 parts + 1, B, |A|] float32
    indices_ptr,  # [B, N] int32
    offsets_ptr,  # [B, N - r + 1] int32
    output_row_ptr,  # [B, N] int32
    tokens,  # at most 2 BA
    r,
    num_protected,
    parts,  # at most PARTS
    PARTS: tl.constexpr,
    BA: tl.constexpr,
    BO: tl.constexpr,
):
    """One program: the plan of one image, whose scores other programs have found."""
    image = tl.program_id(0).to(tl.int64)
    even = (tokens + 1) // 2 - (num_protected + 1) // 2
    odd = tokens // 2 - num_protected // 2
    plane = tl.num_programs(0).to(tl.int64) * even
    best, partner = load_best(scratch_ptr + image * even, tl.arange(0, BA), even, plane, parts, PARTS)
    write_image(
        indices_ptr, offsets_ptr, output_row_ptr, image, best, partner, tokens, even, odd, r, num_protected, BA, BO
    )


@cache_launches(do_not_specialize=["r", "even", "parts"])
def _rank_tiles(
    scratch_ptr,  # [2 parts + 1, B, |A|] float32
    target_ptr,  # [B, |A|] float32: j, or NO_PAIR where a_i is kept
    r,
    even,
    parts,  # at most PARTS
    PARTS: tl.constexpr,
    BA: tl.constexpr,
    BO: tl.constexpr,
):
    """One program: the rank of BA rows of A among all of them, BO at a time."""
    image = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BA + tl.arange(0, BA)
    plane = tl.num_programs(0).to(tl.int64) * even
    scratch_ptr += image * even
    mine, partner = load_best(scratch_ptr, i, even, plane, parts, PARTS)
    place = tl.arange(0, BO)
    rank = tl.zeros([BA], tl.float32)
    for start in range(0, even, BO):
        # -inf ties with -inf, but only those of a lower index count: past |A| there are none.
        theirs = load_best(scratch_ptr, start + place, even, plane, parts, PARTS)[0]
        theirs = tl.gather(theirs, place, 0)[:, None]  # from shared memory: a load for each thread's 64 takes longer
        lower = one_if_less(place.to(tl.float32)[:, None], (i - start).to(tl.float32)[None, :])
        rank += tl.sum(one_if_less(mine[None, :], theirs) + one_if_equal(mine[None, :], theirs) * lower, 0)
    target = tl.where(rank < r, partner.to(tl.float32), NO_PAIR)
    tl.store(target_ptr + image * even + i, target, mask=i < even)


@cache_launches(do_not_specialize=["tokens", "r", "num_protected", "even"])
def _plan_tiles(
    target_ptr,  # [B, |A|] float32: j, or NO_PAIR where a_i is kept
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
    target_ptr += image * even
    target = tl.load(target_ptr + i, mask=i < even, other=NO_PAIR)
    merged = target < NO_PAIR
    place = tl.arange(0, BO)
    merged_before = tl.zeros([BA], tl.float32)
    pairs_before = tl.zeros([BA], tl.float32)
    into_before = tl.zeros([BA], tl.float32)
    for start in range(0, even, BO):
        other = start + place
        theirs = tl.load(target_ptr + other, mask=other < even, other=NO_PAIR)
        theirs = tl.gather(theirs, place, 0)[:, None]
        is_merged = one_if_less(theirs, NO_PAIR)
        lower = one_if_less(place.to(tl.float32)[:, None], (i - start).to(tl.float32)[None, :])
        merged_before += tl.sum(is_merged * lower, 0)
        pairs_before += tl.sum(one_if_less(theirs, target[None, :]) + one_if_equal(theirs, target[None, :]) * lower, 0)
        into_before += tl.sum(one_if_less(theirs, i.to(tl.float32)[None, :]), 0)
    partner = tl.where(merged, target, 0.0).to(tl.int32)

    indices_ptr += image * tokens
    offsets_ptr += image * (tokens - r + 1)
    output_row_ptr += image * tokens
    write_protected(indices_ptr, offsets_ptr, output_row_ptr, i, num_protected)
    write_places(
        indices_ptr, offsets_ptr, output_row_ptr, i, merged, partner, i - merged_before.to(tl.int32),
        pairs_before.to(tl.int32), into_before.to(tl.int32), tokens, even, odd, r, num_protected,
    )  # fmt: skip


def _empty_plan(x: Tensor, tokens: int, r: int) -> tuple[Tensor, Tensor, Tensor]:
    indices = x.new_empty(x.shape[0], tokens, dtype=torch.int32)
    offsets = x.new_empty(x.shape[0], tokens - r + 1, dtype=torch.int32)
    return indices, offsets, torch.empty_like(indices)


def _identity(x: Tensor, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    indices, offsets, output_row = _empty_plan(x, tokens, 0)
    ends = torch.arange(tokens + 1, dtype=torch.int32, device=x.device)
    return indices.copy_(ends[:-1]), offsets.copy_(ends), output_row.copy_(ends[:-1])


@functools.cache  # of a few N, P and batches; the host is what few images wait for
def bucket(tokens: int, channels: int, itemsize: int, images: int) -> dict[str, int]:
    """Returns the bucket of a problem; ``itemsize`` is that of the rows in the dot, 4 for sums over heads."""
    return {
        "images": next((limit for limit in IMAGES if images <= limit), IMAGES[-1]),
        "tokens": next((limit for limit in TOKENS if tokens <= limit), TOKENS[-1]),
        "channels": next((limit for limit in CHANNELS if channels <= limit), CHANNELS[-1]),
        "itemsize": itemsize,
    }


def _blocks(tuned: dict[str, int], channels: int) -> dict[str, int]:
    """Returns C, BA, BB and BC, where BC is no wider than the row (a dot takes at least 16)."""
    width = max(16, round_up_to_power(channels))
    return {"C": channels, "BA": tuned["BA"], "BB": tuned["BB"], "BC": min(tuned["BC"], width)}


def _match(
    x: Tensor, heads: int, x_h: int, r: int, num_protected: int, tuned: dict[str, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the plan of ``x`` [B, N, C], or [B, H, N, C] for the mean over H; where ``parts`` is 0 by one program."""
    batch, (tokens, channels) = x.shape[0], x.shape[-2:]
    plan = _empty_plan(x, tokens, r)
    launch = {"num_warps": tuned["num_warps"], "num_stages": tuned["num_stages"]}
    common = {"HEADS": heads, **_blocks(tuned, channels), **launch}
    if tuned["parts"] == 0:
        _match_image[(batch,)](
            x, *plan, tokens, r, num_protected, x.stride(0), x.stride(-2), x_h, BO=RANK_OTHERS, **common
        )
        return plan
    even, odd, tiles, share, parts = _shares(tokens, num_protected, tuned["BA"], tuned["BB"], tuned["parts"])
    scratch = x.new_empty(2 * parts + 1, batch, even, dtype=torch.float32)
    _match_tiles[(batch, tiles, parts)](
        x, scratch, tokens, num_protected, even, share, x.stride(0), x.stride(-2), x_h, **common
    )
    if tokens <= ONE_PROGRAM:
        _finish_image[(batch,)](
            scratch, *plan, tokens, r, num_protected, parts, PARTS=tuned["parts"], **_finish(tokens)
        )  # fmt: skip
        return plan
    target = x.new_empty(batch, even, dtype=torch.float32)
    tile = {"BA": RANK_ROWS, "BO": RANK_OTHERS, "num_warps": 4, "num_stages": 1}
    _rank_tiles[(batch, divide_up(even, RANK_ROWS))](scratch, target, r, even, parts, PARTS=tuned["parts"], **tile)
    most = max(even, odd, num_protected)
    _plan_tiles[(batch, divide_up(most, RANK_ROWS))](target, *plan, tokens, r, num_protected, even, **tile)
    return plan


@functools.cache
def _shares(tokens: int, num_protected: int, rows: int, cols: int, most: int) -> tuple[int, int, int, int, int]:
    """Returns |A|, |B|, tiles of A, rows of B in a part, and how many of ``most`` parts have rows."""
    even = (tokens + 1) // 2 - (num_protected + 1) // 2
    odd = tokens // 2 - num_protected // 2
    share = divide_up(odd, most * cols) * cols
    return even, odd, divide_up(even, rows), share, divide_up(odd, share)


@functools.cache
def _finish(tokens: int) -> dict[str, int]:
    """Returns the tile of ``_finish_image``: all of A, padded as the buckets of N are."""
    rows = next(limit for limit in TOKENS if tokens <= limit) // 2
    return {"BA": rows, "BO": RANK_OTHERS, "num_warps": 8, "num_stages": 1}


def bipartite_matching(metric: Tensor, r: int, num_protected: int) -> tuple[Tensor, Tensor, Tensor]:
    """``metric`` [B, N, C] -> (indices [B, N], offsets [B, N - r + 1], output_row [B, N]), int32."""
    refuse_double(metric)
    batch, tokens, channels = metric.shape
    if r == 0:
        return _identity(metric, tokens)
    if batch == 0:
        return _empty_plan(metric, tokens, r)
    metric = unit_stride(metric)
    tuned = config("bipartite_soft_matching", **bucket(tokens, channels, metric.element_size(), batch))
    return _match(metric, 1, 0, r, num_protected, tuned)


def bipartite_matching_from_keys(k: Tensor, r: int, num_protected: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the plan of ``k.mean(1, dtype=torch.float32)``, ``k`` [B, H, N, D] of any strides (packed QKV).

    Up to 512 tokens, and where one tile holds D, the kernel takes the mean from its reads of the keys. Elsewhere keys
    would be read again for every tile, so the mean is computed once, in float32.
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
    tuned = config("bipartite_soft_matching", **bucket(tokens, channels, 4, batch))
    if tokens > ONE_PROGRAM or channels > tuned["BC"]:
        return bipartite_matching(k.mean(1, dtype=torch.float32), r, num_protected)
    k = unit_stride(k)
    return _match(k, heads, k.stride(1), r, num_protected, tuned)
