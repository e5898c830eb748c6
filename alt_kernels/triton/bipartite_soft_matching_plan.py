"""Ranks and plans of bipartite matching in Triton: device functions that the kernels of a matching inline.

Symbols: BA rows of A in a tile, BO others that they are compared with; i indexes A, j indexes B: the token of a_i is
``first even + 2 i``. Everything is a rank by counting: n^2 comparisons in registers, no sort and no atomic.

Comparisons are counted in float32, exactly up to 2^24: a comparison that gives 1.0 or 0.0 is one instruction, and its
sum is one of the pipe that comparisons leave idle. Counted as integers the compiler collects predicates in bit masks,
at twice the instructions.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .hardware import one_if_equal, one_if_less

NO_PAIR: tl.constexpr = tl.constexpr(float("inf"))  # stands for the place of a pair, or for j, where a is kept


@triton.jit
def write_places(
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
def write_protected(indices_ptr, offsets_ptr, output_row_ptr, token, num_protected):
    tl.store(indices_ptr + token, token, mask=token < num_protected)
    tl.store(offsets_ptr + token, token, mask=token < num_protected)
    tl.store(output_row_ptr + token, token, mask=token < num_protected)


@triton.jit
def write_image(
    indices_ptr,  # [B, N] int32
    offsets_ptr,  # [B, N - r + 1] int32
    output_row_ptr,  # [B, N] int32
    image,
    best,  # [BA] scores of all a's; -inf past |A|
    partner,  # [BA]
    tokens,  # at most 2 BA
    even,
    odd,
    r,
    num_protected,
    BA: tl.constexpr,
    BO: tl.constexpr,
):
    """Writes the plan of an image whose scores one program holds.

    If the counts of higher scores sum to |A| (|A| - 1) / 2, no two scores are equal. Only otherwise are the ties
    counted, in a second loop: the lower a goes first.
    """
    i = tl.arange(0, BA)
    place = tl.arange(0, BO)
    rank = tl.zeros([BA], tl.float32)
    for start in range(0, even, BO):
        theirs = tl.gather(best, start + place, 0)[:, None]
        rank += tl.sum(one_if_less(best[None, :], theirs), 0)
    different = even * (even - 1) // 2
    if tl.sum(tl.where(i < even, rank, 0.0), 0) < different.to(tl.float32):
        for start in range(0, even, BO):
            theirs = tl.gather(best, start + place, 0)[:, None]
            lower = one_if_less(place.to(tl.float32)[:, None], (i - start).to(tl.float32)[None, :])
            rank += tl.sum(one_if_equal(theirs, best[None, :]) * lower, 0)
    merged = (i < even) & (rank < r)
    kept = (~merged).to(tl.int32)
    pair = tl.where(merged, (partner * BA + i).to(tl.float32), NO_PAIR)  # by b, then by a
    pairs_before = tl.zeros([BA], tl.float32)
    into_before = tl.zeros([BA], tl.float32)
    for start in range(0, even, BO):
        theirs = tl.gather(pair, start + place, 0)[:, None]
        pairs_before += tl.sum(one_if_less(theirs, pair[None, :]), 0)
        into_before += tl.sum(one_if_less(theirs, (i * BA).to(tl.float32)[None, :]), 0)

    indices_ptr += image * tokens
    offsets_ptr += image * (tokens - r + 1)
    output_row_ptr += image * tokens
    write_protected(indices_ptr, offsets_ptr, output_row_ptr, tl.arange(0, 2 * BA), num_protected)
    write_places(
        indices_ptr, offsets_ptr, output_row_ptr, i, merged, partner, tl.cumsum(kept, 0) - kept,
        pairs_before.to(tl.int32), into_before.to(tl.int32), tokens, even, odd, r, num_protected,
    )  # fmt: skip
