"""Proportional attention in Triton: softmax(q k^T scale + log s) v, never an M x N tensor, no atomics.

Symbols: B images, H heads, M queries, N keys, D head dimension, BD >= D its width, tiles of BM queries and BN keys.

Up to 256 keys the keys and values of a head stay on chip for all its queries and the softmax is a single pass (over
two tiles of keys, BN and BE, so that 192 keys are not padded to 256); above, the keys stream by and the softmax is
the online one (Milakov and Gimelshein, arXiv 1805.02867). Logits are kept in units of log 2, so that the hardware's
exp2 serves, and log2(s) is added to them after the product. Floor: q, k, v read and out written once, 2 (M + N) D
elements a head; 4 M N D floating point operations. The derivative is in ``proportional_attention_backward.py``.

q, k, v are read where they lie, as views of a packed QKV. The result lies as ``[B, M, H, D]`` and is returned as the
view ``[B, H, M, D]``: joining the heads before the output projection then costs nothing.
"""

from __future__ import annotations

import math
from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from .aot_case import AotCase, keep
from .host import refuse_double, unit_stride
from .tuning import config, shipped

LOG2_E = math.log2(math.e)
LN_2 = tl.constexpr(math.log(2.0))
MAX_DEPTH = 256  # wider heads would not fit the registers
PROGRAMS = 264  # enough to fill the largest GPU we target twice: heads are split further only below this
STEM = "proportional_attention"


@triton.jit
def load_rows(base, row, stride, live, D: tl.constexpr, BD: tl.constexpr):
    """Rows of D elements, ``stride`` apart, as a tile of width BD; zeros where not ``live`` and beyond D."""
    column = tl.arange(0, BD)
    pointer = base + row.to(tl.int64)[:, None] * stride + column[None, :]
    if D == BD:
        return tl.load(pointer, mask=live[:, None], other=0.0)
    return tl.load(pointer, mask=live[:, None] & (column < D)[None, :], other=0.0)


@triton.jit
def store_rows(base, row, stride, live, value, D: tl.constexpr, BD: tl.constexpr):
    """The inverse of ``load_rows``, rounded to the pointer's dtype."""
    column = tl.arange(0, BD)
    pointer = base + row.to(tl.int64)[:, None] * stride + column[None, :]
    value = value.to(base.dtype.element_ty)
    if D == BD:
        tl.store(pointer, value, mask=live[:, None])
    else:
        tl.store(pointer, value, mask=live[:, None] & (column < D)[None, :])


@triton.jit
def key_bias(size_row, key, keys, HAS_SIZE: tl.constexpr):
    """log2(s) of a tile of keys; -inf, which is log2(0), for a masked key and for one past the end."""
    if HAS_SIZE:
        bias = tl.log2(tl.load(size_row + key, mask=key < keys, other=0.0))
    else:
        bias = tl.where(key < keys, 0.0, float("-inf"))
    return bias


@triton.jit
def logits(q, k, size_row, key, keys, scale, HAS_SIZE: tl.constexpr, FULL: tl.constexpr, PRECISION: tl.constexpr):
    """q k^T scale + log2(s) in units of log 2, ``[BM, BN]``; scale holds log2(e). FULL: no key is past the end.

    The bias is the maximum of two equal columns: across a reduction the compiler cannot move the logarithm to where the
    product is, whose layout would have every thread take 64 of them and keep them in registers that then spill.
    """
    s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    if HAS_SIZE:
        s += tl.max(key_bias(size_row, key[:, None] + tl.zeros([1, 2], tl.int32), keys, HAS_SIZE), 1)[None, :]
    elif not FULL:
        s = tl.where((key < keys)[None, :], s, float("-inf"))
    return s


@triton.jit
def _finish(out_base, lse_row, row, live, acc, peak, total, heads, D: tl.constexpr, BD: tl.constexpr):
    """Divide by the row sums and store; a row without a key gives zeros and a log-sum-exp of -inf."""
    none = total == 0.0
    store_rows(out_base, row, heads * D, live, acc * (1.0 / tl.where(none, 1.0, total))[:, None], D, BD)
    lse = tl.where(none, float("-inf"), (peak + tl.log2(tl.where(none, 1.0, total))) * LN_2)
    tl.store(lse_row + row, lse, mask=live)


@triton.jit(do_not_specialize=["queries", "keys", "heads", "splits"])
def _forward_resident(
    q_ptr,  # [B, H, M, D], strides (q_b, q_h, q_n, 1)
    k_ptr,  # [B, H, N, D], strides (k_b, k_h, k_n, 1)
    v_ptr,  # [B, H, N, D], strides (v_b, v_h, v_n, 1)
    size_ptr,  # [B, N] float32, read where HAS_SIZE
    out_ptr,  # [B, M, H, D] contiguous
    lse_ptr,  # [B, H, M] float32
    queries,
    keys,  # N <= BN + BE
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
    BN: tl.constexpr,
    BE: tl.constexpr,  # 0: one tile; else N > BN
    PRECISION: tl.constexpr,
):
    """One program: every ``splits``-th tile of BM queries of one head, whose keys and values it loads once."""
    program = tl.program_id(0)
    pair = (program // splits).to(tl.int64)
    image = pair // heads
    head = pair % heads
    k_base = k_ptr + image * k_b + head * k_h
    v_base = v_ptr + image * v_b + head * v_h
    size_row = size_ptr + image * keys
    first = tl.arange(0, BN)
    k = load_rows(k_base, first, k_n, first < keys, D, BD)  # [BN, BD]
    v = load_rows(v_base, first, v_n, first < keys, D, BD)  # [BN, BD]
    if BE > 0:
        rest = BN + tl.arange(0, BE)
        k_rest = load_rows(k_base, rest, k_n, rest < keys, D, BD)  # [BE, BD]
        v_rest = load_rows(v_base, rest, v_n, rest < keys, D, BD)  # [BE, BD]
    for tile in range(program % splits, tl.cdiv(queries, BM), splits):
        row = tile * BM + tl.arange(0, BM)
        live = row < queries
        q = load_rows(q_ptr + image * q_b + head * q_h, row, q_n, live, D, BD)  # [BM, BD]
        s = logits(q, k, size_row, first, keys, scale, HAS_SIZE, BE > 0, PRECISION)  # [BM, BN]
        peak = tl.max(s, 1)
        if BE > 0:
            s_rest = logits(q, k_rest, size_row, rest, keys, scale, HAS_SIZE, False, PRECISION)  # [BM, BE]
            peak = tl.maximum(peak, tl.max(s_rest, 1))
        peak = tl.where(peak == float("-inf"), 0.0, peak)  # all keys masked: -inf - -inf would be NaN
        p = tl.exp2(s - peak[:, None])
        total = tl.sum(p, 1)
        acc = tl.dot(p.to(v.dtype), v, input_precision=PRECISION)  # [BM, BD]
        if BE > 0:
            p_rest = tl.exp2(s_rest - peak[:, None])
            total += tl.sum(p_rest, 1)
            acc = tl.dot(p_rest.to(v.dtype), v_rest, acc, input_precision=PRECISION)
        out = out_ptr + (image * queries * heads + head) * D
        _finish(out, lse_ptr + pair * queries, row, live, acc, peak, total, heads, D, BD)


@triton.jit(do_not_specialize=["queries", "keys", "heads"])
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
    tiles = tl.cdiv(queries, BM)
    program = tl.program_id(0)
    pair = (program // tiles).to(tl.int64)  # the tiles of a head run side by side and share its keys in L2
    image = pair // heads
    head = pair % heads
    row = (program % tiles) * BM + tl.arange(0, BM)
    live = row < queries
    q = load_rows(q_ptr + image * q_b + head * q_h, row, q_n, live, D, BD)  # [BM, BD]
    peak = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, BD], tl.float32)
    for first in range(0, keys, BN):
        key = first + tl.arange(0, BN)
        k = load_rows(k_ptr + image * k_b + head * k_h, key, k_n, key < keys, D, BD)  # [BN, BD]
        v = load_rows(v_ptr + image * v_b + head * v_h, key, v_n, key < keys, D, BD)  # [BN, BD]
        s = logits(q, k, size_ptr + image * keys, key, keys, scale, HAS_SIZE, False, PRECISION)  # [BM, BN]
        higher = tl.maximum(peak, tl.max(s, 1))
        safe = tl.where(higher == float("-inf"), 0.0, higher)  # no key yet: -inf - -inf would be NaN
        p = tl.exp2(s - safe[:, None])
        shrink = tl.exp2(peak - safe)
        total = total * shrink + tl.sum(p, 1)
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
        peak = higher
    out = out_ptr + (image * queries * heads + head) * D
    _finish(out, lse_ptr + pair * queries, row, live, acc, peak, total, heads, D, BD)


def check_depth(q: Tensor) -> None:
    if q.shape[-1] > MAX_DEPTH:
        raise ValueError(
            f"q: expected a head dimension of at most {MAX_DEPTH} for the Triton kernel, got {q.shape[-1]}"
        )


def width(depth: int) -> int:
    """BD: a power of two, at least the 16 that a matrix instruction takes."""
    return max(16, triton.next_power_of_2(depth))


def bucket(keys: int) -> int:
    """64, 128, 192 or 256, and 512 for all above: what a configuration may depend on as tokens merge away."""
    return 64 * triton.cdiv(keys, 64) if keys <= 256 else 512


def heads_last(x: Tensor, rows: int) -> Tensor:
    """An uninitialised ``[B, H, rows, D]`` like x that lies as ``[B, rows, H, D]``."""
    batch, heads, _, depth = x.shape
    return x.new_empty((batch, rows, heads, depth)).transpose(1, 2)


def precision(dtype: torch.dtype) -> str:
    """float32 is multiplied as float32; of half precision the products are exact in any case."""
    return "ieee" if dtype == torch.float32 else "tf32"


def proportional_attention(q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    refuse_double(q)
    check_depth(q)
    q, k, v = unit_stride(q), unit_stride(k), unit_stride(v)
    batch, heads, queries, depth = q.shape
    keys = k.shape[2]
    out = heads_last(q, queries)
    logsumexp = q.new_empty((batch, heads, queries), dtype=torch.float32)
    if out.numel() == 0:
        return out, logsumexp
    if keys == 0:
        return out.zero_(), logsumexp.fill_(-math.inf)
    tuned = config(STEM, depth=width(depth), bytes=q.element_size(), keys=bucket(keys))
    tiles = triton.cdiv(queries, tuned["rows"])
    resident = tuned["resident"] and keys <= tuned["cols"] + tuned["more_cols"]
    splits = min(tiles, triton.cdiv(PROGRAMS, batch * heads)) if resident else tiles
    kernel = _forward_resident if resident else _forward_online
    kernel[(batch * heads * splits,)](
        q, k, v, q if size is None else size.contiguous(), out, logsumexp,
        queries, keys, heads, *((splits,) if resident else ()),
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], scale * LOG2_E,
        HAS_SIZE=size is not None, D=depth, BD=width(depth), BM=tuned["rows"], BN=tuned["cols"],
        **({"BE": tuned["more_cols"] if keys > tuned["cols"] else 0} if resident else {}), PRECISION=precision(q.dtype),
        num_warps=tuned["num_warps"], num_stages=tuned["num_stages"],
    )  # fmt: skip
    return out, logsumexp


# What is compiled ahead of time: the head dimensions of CLIP towers in bfloat16 and float32, float16 at the usual 64;
# with sizes, and at 64 without them as well, as in the first block.
KEYS = (64, 128, 192, 256, 512)
LAUNCHES = (
    *product((64, 80, 128, 256), ("bf16", "fp32"), KEYS, (True,)),
    *product((64,), ("fp16",), KEYS, (True,)),
    *product((64,), ("bf16",), KEYS, (False,)),
)
STRIDES = {f"{name}_{axis}": "i32" for name in "qkv" for axis in "bhn"}
TIGHT = "on sm_80, 1 to 3 registers: the logits of 64 queries fill half of them, and the mask is kept over the loop"


def aot_name(what: str, depth: int, dtype: str, sized: bool, warps: int, stages: int) -> str:
    return f"{what} D={depth} {dtype}{'' if sized else ' no sizes'} {warps} warps {stages} stages"


def _aot() -> list[AotCase]:
    cases: dict[str, AotCase] = {}
    for depth, dtype, keys, sized in LAUNCHES:
        for tuned, targets in shipped(STEM, depth=width(depth), bytes=4 if dtype == "fp32" else 2, keys=keys):
            resident = tuned["resident"] and keys <= tuned["cols"] + tuned["more_cols"]
            integers = ("queries", "keys", "heads", *(("splits",) if resident else ()))
            signature = {f"{name}_ptr": f"*{dtype}" for name in ("q", "k", "v", "out")}
            signature |= {"size_ptr": "*fp32" if sized else f"*{dtype}", "lse_ptr": "*fp32"}
            signature |= dict.fromkeys(integers, "i32") | STRIDES | {"scale": "fp32"}
            rows, cols, more, warps, stages = (
                tuned[name] for name in ("rows", "cols", "more_cols", "num_warps", "num_stages")
            )
            constants = {"HAS_SIZE": sized, "D": depth, "BD": width(depth), "BM": rows, "BN": cols}
            constants |= {"BE": more} if resident else {}
            constants["PRECISION"] = "ieee" if dtype == "fp32" else "tf32"
            what = f"forward resident {rows}x{cols + more}" if resident else f"forward online {rows}x{cols}"
            name = aot_name(what, depth, dtype, sized, warps, stages)
            kernel = _forward_resident if resident else _forward_online
            reason = TIGHT if resident and more and not sized else ""
            half = dtype != "fp32"
            keep(cases, AotCase(name, kernel, signature, constants, warps, stages, half, reason, targets=targets))
    return list(cases.values())


AOT: list[AotCase] = _aot()
