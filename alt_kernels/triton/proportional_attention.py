"""Proportional attention in Triton: softmax(q k^T scale + log s) v, without an M x N tensor and without atomics.

Symbols: B images, H heads, M queries, N keys, D head dimension, BD >= D its width, tiles of BM queries and BN keys.

Where the configuration says so (half precision; D <= 64: up to 256 keys, on sm_90 272; D <= 128: up to 128 keys), the
keys and values of a head stay on chip for all its queries, in up to three tiles. Sides are powers of two: 197 keys are
128 + 64 + 16, and 257 are 128 + 128 + 16. The softmax is one pass over all tiles, or two passes (the first tile, then
the rest), which halve the registers of the logits. Elsewhere the keys are streamed with the online softmax (Milakov and
Gimelshein, arXiv 1805.02867). Logits are in units of log 2, for the hardware's exp2, and log2(s) is added after the
product. Floor: q, k, v are read and out is written once, 2 (M + N) D elements per head; 4 M N D floating-point
operations. The derivative is in ``proportional_attention_backward.py``.

q, k, v are read in place, as views of a packed QKV. The result is ``[B, M, H, D]`` in memory and returned as the
view ``[B, H, M, D]``, so joining the heads before the output projection costs nothing.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention_tiles import head_of, key_bias, load_rows, log2, logits, store_rows, unit_stride_rows
from .host import divide_up, refuse_double, round_up_to_power
from .launch import cache_launches
from .launch_configs import config

LOG2_E = math.log2(math.e)
LN_2 = tl.constexpr(math.log(2.0))
MAX_DEPTH = 256  # wider heads would not fit the registers
PROGRAMS = 264  # fills the largest target GPU twice; heads are split only below this
STEM = "proportional_attention"


@triton.jit
def _finish(
    out_base, lse_row, first, row, live, acc, peak, total, heads, D: tl.constexpr, BD: tl.constexpr, HALF: tl.constexpr
):
    """Divides by the row sums and stores; a row without a key gives zeros and a log-sum-exp of -inf."""
    none = total == 0.0
    total = tl.where(none, 1.0, total)
    store_rows(out_base, first, row, heads * D, live, acc * (1.0 / total)[:, None], D, BD)
    lse = tl.where(none, float("-inf"), (peak + log2(total, HALF)) * LN_2)
    tl.store(lse_row + first + row, lse, mask=live)


@cache_launches(do_not_specialize=["queries", "keys", "heads", "splits"])
def _forward_resident(
    q_ptr,  # [B, H, M, D], strides (q_b, q_h, q_n, 1)
    k_ptr,  # [B, H, N, D], strides (k_b, k_h, k_n, 1)
    v_ptr,  # [B, H, N, D], strides (v_b, v_h, v_n, 1)
    size_ptr,  # [B, N] float32, read where HAS_SIZE
    out_ptr,  # [B, M, H, D] contiguous
    lse_ptr,  # [B, H, M] float32
    queries,
    keys,  # N, more than TILES hold without the last
    heads,
    splits,  # programs that share a head
    q_b,
    q_h,
    q_n,
    k_b,
    k_h,
    k_n,
    v_b,
    v_h,
    v_n,
    scale,  # times log2(e)
    HAS_SIZE: tl.constexpr,
    D: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
    TILES: tl.constexpr,  # tiles of keys, (128, 64, 16)
    FIRST: tl.constexpr,  # the number of tiles in the first pass of the softmax; all: there is no second pass
    PRECISION: tl.constexpr,
):
    """One program: every ``splits``-th tile of BM queries of one head, with one load of its keys and values."""
    HALF: tl.constexpr = q_ptr.dtype.element_ty != tl.float32
    COUNT: tl.constexpr = len(TILES)
    program = tl.program_id(0)
    pair, image, head = head_of(program // splits, heads)
    q_base = q_ptr + image * q_b + head * q_h
    k_base = k_ptr + image * k_b + head * k_h
    v_base = v_ptr + image * v_b + head * v_h
    out_base = out_ptr + (image * queries * heads + head) * D
    k, v, bias = (), (), ()
    start = 0
    for i in tl.static_range(COUNT):
        place = start + tl.arange(0, TILES[i])
        exists = place < keys
        k += (load_rows(k_base, 0, place, k_n, exists, D, BD),)  # [TILES[i], BD]
        v += (load_rows(v_base, 0, place, v_n, exists, D, BD),)
        bias += (key_bias(size_ptr + image * keys, place, keys, HAS_SIZE, HALF),)
        start += TILES[i]
    for tile in range(program % splits, tl.cdiv(queries, BM), splits):
        first = tile * BM
        row = tl.arange(0, BM)
        live = row < queries - first
        q = load_rows(q_base, first, row, q_n, live, D, BD)  # [BM, BD]
        highest = tl.full([BM], float("-inf"), tl.float32)
        peak = tl.zeros([BM], tl.float32)
        total = tl.zeros([BM], tl.float32)
        acc = tl.zeros([BM, BD], tl.float32)
        for turn in tl.static_range(1 if FIRST == COUNT else 2):
            before = highest
            s = ()
            for i in tl.static_range(FIRST * turn, COUNT if turn else FIRST):
                s += (logits(q, k[i], bias[i], scale, HAS_SIZE or i == COUNT - 1, True, PRECISION),)
                highest = tl.maximum(highest, tl.max(s[i - FIRST * turn], 1))
            peak = tl.where(highest == float("-inf"), 0.0, highest)  # all keys masked: -inf - -inf would be NaN
            if turn:
                shrink = tl.exp2(before - peak)
                total *= shrink
                acc *= shrink[:, None]
            for i in tl.static_range(FIRST * turn, COUNT if turn else FIRST):
                p = tl.exp2(s[i - FIRST * turn] - peak[:, None])
                total += tl.sum(p, 1)
                acc = tl.dot(p.to(q.dtype), v[i], acc, input_precision=PRECISION)  # [BM, BD]
        _finish(out_base, lse_ptr + pair * queries, first, row, live, acc, peak, total, heads, D, BD, HALF)


@cache_launches(do_not_specialize=["queries", "keys", "heads"])
def _forward_online(
    q_ptr,  # [B, H, M, D], strides (q_b, q_h, q_n, 1)
    k_ptr,  # [B, H, N, D], strides (k_b, k_h, k_n, 1)
    v_ptr,  # [B, H, N, D], strides (v_b, v_h, v_n, 1)
    size_ptr,  # [B, N] float32, read where HAS_SIZE
    out_ptr,  # [B, M, H, D] contiguous
    lse_ptr,  # [B, H, M] float32
    queries,
    keys,
    heads,
    q_b,
    q_h,
    q_n,
    k_b,
    k_h,
    k_n,
    v_b,
    v_h,
    v_n,
    scale,  # times log2(e)
    HAS_SIZE: tl.constexpr,
    D: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program: BM queries of one head, its keys in tiles of BN."""
    HALF: tl.constexpr = q_ptr.dtype.element_ty != tl.float32
    tiles = tl.cdiv(queries, BM)
    program = tl.program_id(0)
    pair, image, head = head_of(program // tiles, heads)  # the tiles of a head run together and share its keys in L2
    k_base = k_ptr + image * k_b + head * k_h
    v_base = v_ptr + image * v_b + head * v_h
    first = (program % tiles) * BM
    row = tl.arange(0, BM)
    live = row < queries - first
    q = load_rows(q_ptr + image * q_b + head * q_h, first, row, q_n, live, D, BD)  # [BM, BD]
    peak = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, BD], tl.float32)
    for start in range(0, keys, BN):
        place = tl.arange(0, BN)
        key = start + place
        k = load_rows(k_base, start, place, k_n, key < keys, D, BD)  # [BN, BD]
        v = load_rows(v_base, start, place, v_n, key < keys, D, BD)  # [BN, BD]
        bias = key_bias(size_ptr + image * keys, key, keys, HAS_SIZE, HALF)
        s = logits(q, k, bias, scale, True, False, PRECISION)  # [BM, BN]
        higher = tl.maximum(peak, tl.max(s, 1))
        safe = tl.where(higher == float("-inf"), 0.0, higher)  # no key yet: -inf - -inf would be NaN
        p = tl.exp2(s - safe[:, None])
        shrink = tl.exp2(peak - safe)
        total = total * shrink + tl.sum(p, 1)
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
        peak = higher
    out_base = out_ptr + (image * queries * heads + head) * D
    _finish(out_base, lse_ptr + pair * queries, first, row, live, acc, peak, total, heads, D, BD, HALF)


def check_depth(q: Tensor) -> None:
    """Raises for heads that are too wide for the kernels."""
    if q.shape[-1] > MAX_DEPTH:
        raise ValueError(
            f"q: expected a head dimension of at most {MAX_DEPTH} for the Triton kernel, got {q.shape[-1]}"
        )


def width(depth: int) -> int:
    """Returns BD: a power of two, at least the 16 of a matrix instruction."""
    return max(16, round_up_to_power(depth))


BUCKETS = (64, 128, 160, 192, 208, 256, 272)


@functools.lru_cache(2048)
def bucket(keys: int) -> int:
    """Returns the first of BUCKETS that holds ``keys``, and 512 above: configurations depend on this and not on N.

    208 and 272 are for the 197 and 257 tokens of an image with its class token.
    """
    return next((size for size in BUCKETS if keys <= size), 512)


def key_tiles(tuned: dict[str, int], keys: int) -> tuple[int, ...]:
    """Returns the tiles that hold ``keys`` keys on chip; none where the configuration streams or does not hold them."""
    found: list[int] = []
    for side in (tuned["cols"], tuned["more_cols"], tuned["last_cols"]) if tuned["resident"] else ():
        if side and sum(found) < keys:
            found.append(side)
    return tuple(found) if sum(found) >= keys else ()


def heads_last(x: Tensor, rows: int) -> Tensor:
    """Returns an uninitialised ``[B, H, rows, D]`` like x that is ``[B, rows, H, D]`` in memory."""
    batch, heads, _, depth = x.shape
    return x.new_empty_strided((batch, heads, rows, depth), (rows * heads * depth, depth, heads * depth, 1))


def precision(dtype: torch.dtype) -> str:
    """Returns the ``input_precision`` of a dot: float32 is multiplied as float32, half-precision products are exact."""
    return "ieee" if dtype == torch.float32 else "tf32"


def _layout(tuned: dict[str, int], tiles: tuple[int, ...]) -> dict[str, Any]:
    """Returns the constants of the layout of keys."""
    return {"TILES": tiles, "FIRST": 1 if tuned["passes"] > 1 else len(tiles)} if tiles else {"BN": tuned["cols"]}


def proportional_attention(q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    refuse_double(q)
    check_depth(q)
    q, k, v = unit_stride_rows(q), unit_stride_rows(k), unit_stride_rows(v)
    batch, heads, queries, depth = q.shape
    keys = k.shape[2]
    out = heads_last(q, queries)
    logsumexp = q.new_empty(batch, heads, queries, dtype=torch.float32)
    if out.numel() == 0:
        return out, logsumexp
    if keys == 0:
        return out.zero_(), logsumexp.fill_(-math.inf)
    wide = width(depth)
    tuned = config(STEM, depth=wide, bytes=q.element_size(), keys=bucket(keys))
    blocks = divide_up(queries, tuned["rows"])
    tiles = key_tiles(tuned, keys)
    splits = min(blocks, divide_up(PROGRAMS, batch * heads)) if tiles else blocks
    kernel = _forward_resident if tiles else _forward_online
    kernel[(batch * heads * splits,)](
        q, k, v, q if size is None else size.contiguous(), out, logsumexp,
        queries, keys, heads, *((splits,) if tiles else ()),
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], scale * LOG2_E,
        HAS_SIZE=size is not None, D=depth, BD=wide, BM=tuned["rows"], **_layout(tuned, tiles),
        PRECISION=precision(q.dtype), num_warps=tuned["num_warps"], num_stages=tuned["num_stages"],
        maxnreg=tuned["max_registers"] or None,
    )  # fmt: skip
    return out, logsumexp
