r"""Derivative of proportional attention in Triton: deterministic, without atomics and without an M x N tensor.

With P = exp(scores - lse) recomputed, dP = dO V^T and delta = rowsum(dO out) = rowsum(P dP):

    dV = P^T dO,   dS = P (dP - delta),   dQ = dS K scale,   dK = dS^T Q scale.

Where the keys of a head fit one tile (half precision, D <= 64: up to 128, on sm_90 up to 256), one program does the
whole head and each product is computed once. It has all keys, so delta is rowsum(P dP), ``out`` is not read, and dQ
needs no sum over programs. Floor: 7 M D elements per head for M = N (q, k, v, dO in; dq, dk, dv out), 10 M N D
floating-point operations. Otherwise one kernel goes over tiles of queries for dQ (and delta), and a second one over
tiles of keys for dK and dV. Then P and dP are computed twice: 14 M N D operations.

The kernel over keys works on transposed tiles ``[BN, BM]``. With 256 keys and 32 queries, matrix instructions of 64 or
more rows leave room in the registers for the sums of dK and dV only in that shape.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention_tiles import head_of, key_bias, load_rows, logits, store_rows, unit_stride_rows
from .hardware import rounded_product
from .host import divide_up, refuse_double
from .launch import cache_launches
from .launch_configs import config
from .proportional_attention import (
    LOG2_E,
    bucket,
    check_depth,
    heads_last,
    precision,
    width,
)

STEM = "proportional_attention_backward"
LOG2_E_DEVICE = tl.constexpr(LOG2_E)


@triton.jit
def _load_lse(lse_row, row, live):
    """Loads the rows' log2-sum-exp2; +inf, which makes P zero, past the end and for a row without keys."""
    lse = tl.load(lse_row + row, mask=live, other=float("inf"))
    return tl.where(lse == float("-inf"), float("inf"), lse * LOG2_E_DEVICE)


@cache_launches(do_not_specialize=["queries", "keys", "heads"])
def _backward_queries(
    grad_ptr,  # [B, H, M, D], strides (g_b, g_h, g_n, 1)
    q_ptr,  # [B, H, M, D], strides (q_b, q_h, q_n, 1)
    k_ptr,  # [B, H, N, D], strides (k_b, k_h, k_n, 1)
    v_ptr,  # [B, H, N, D], strides (v_b, v_h, v_n, 1)
    size_ptr,  # [B, N] float32, read where HAS_SIZE
    out_ptr,  # [B, H, M, D], strides (o_b, o_h, o_n, 1)
    lse_ptr,  # [B, H, M] float32
    delta_ptr,  # [B, H, M] float32, written
    dq_ptr,  # [B, M, H, D] contiguous, written
    queries,
    keys,
    heads,
    g_b,
    g_h,
    g_n,
    q_b,
    q_h,
    q_n,
    k_b,
    k_h,
    k_n,
    v_b,
    v_h,
    v_n,
    o_b,
    o_h,
    o_n,
    scale,
    scale_log2,  # scale times log2(e)
    HAS_SIZE: tl.constexpr,
    D: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program: dQ and delta of BM queries of one head, its keys in tiles of BN."""
    HALF: tl.constexpr = q_ptr.dtype.element_ty != tl.float32
    tiles = tl.cdiv(queries, BM)
    program = tl.program_id(0)
    pair, image, head = head_of(program // tiles, heads)
    k_base = k_ptr + image * k_b + head * k_h
    v_base = v_ptr + image * v_b + head * v_h
    first = (program % tiles) * BM
    row = tl.arange(0, BM)
    live = row < queries - first
    grad = load_rows(grad_ptr + image * g_b + head * g_h, first, row, g_n, live, D, BD)  # [BM, BD]
    out = load_rows(out_ptr + image * o_b + head * o_h, first, row, o_n, live, D, BD)  # [BM, BD]
    delta = tl.sum(rounded_product(grad.to(tl.float32), out.to(tl.float32)), 1)  # [BM]
    tl.store(delta_ptr + pair * queries + first + row, delta, mask=live)
    q = load_rows(q_ptr + image * q_b + head * q_h, first, row, q_n, live, D, BD)  # [BM, BD]
    lse = _load_lse(lse_ptr + pair * queries + first, row, live)
    dq = tl.zeros([BM, BD], tl.float32)
    for start in range(0, keys, BN):
        place = tl.arange(0, BN)
        key = start + place
        k = load_rows(k_base, start, place, k_n, key < keys, D, BD)  # [BN, BD]
        v = load_rows(v_base, start, place, v_n, key < keys, D, BD)  # [BN, BD]
        bias = key_bias(size_ptr + image * keys, key, keys, HAS_SIZE, HALF)
        s = logits(q, k, bias, scale_log2, True, False, PRECISION)  # [BM, BN]
        p = tl.exp2(s - lse[:, None])
        dp = tl.dot(grad, tl.trans(v), input_precision=PRECISION)  # [BM, BN]
        ds = p * (dp - delta[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)
    store_rows(dq_ptr + (image * queries * heads + head) * D, first, row, heads * D, live, dq * scale, D, BD)


@cache_launches(do_not_specialize=["queries", "keys", "heads"])
def _backward_keys(
    grad_ptr,  # [B, H, M, D], strides (g_b, g_h, g_n, 1)
    q_ptr,  # [B, H, M, D], strides (q_b, q_h, q_n, 1)
    k_ptr,  # [B, H, N, D], strides (k_b, k_h, k_n, 1)
    v_ptr,  # [B, H, N, D], strides (v_b, v_h, v_n, 1)
    size_ptr,  # [B, N] float32, read where HAS_SIZE
    lse_ptr,  # [B, H, M] float32
    delta_ptr,  # [B, H, M] float32, read unless WHOLE_HEAD
    dq_ptr,  # [B, M, H, D] contiguous, written where WHOLE_HEAD
    dk_ptr,  # [B, N, H, D] contiguous, written
    dv_ptr,  # [B, N, H, D] contiguous, written
    queries,
    keys,
    heads,
    g_b,
    g_h,
    g_n,
    q_b,
    q_h,
    q_n,
    k_b,
    k_h,
    k_n,
    v_b,
    v_h,
    v_n,
    scale,
    scale_log2,  # scale times log2(e)
    HAS_SIZE: tl.constexpr,
    WHOLE_HEAD: tl.constexpr,  # N <= BN: this program sees every key of its queries
    D: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program: dK and dV of BN keys of one head, its queries in tiles of BM; with WHOLE_HEAD also dQ."""
    HALF: tl.constexpr = q_ptr.dtype.element_ty != tl.float32
    tiles = tl.cdiv(keys, BN)
    program = tl.program_id(0)
    pair, image, head = head_of(program // tiles, heads)
    q_base = q_ptr + image * q_b + head * q_h
    grad_base = grad_ptr + image * g_b + head * g_h
    dq_base = dq_ptr + (image * queries * heads + head) * D
    start = (program % tiles) * BN
    place = tl.arange(0, BN)
    exists = place < keys - start
    k = load_rows(k_ptr + image * k_b + head * k_h, start, place, k_n, exists, D, BD)  # [BN, BD]
    v = load_rows(v_ptr + image * v_b + head * v_h, start, place, v_n, exists, D, BD)  # [BN, BD]
    bias = key_bias(size_ptr + image * keys, start + place, keys, HAS_SIZE, HALF)  # [BN]
    dk = tl.zeros([BN, BD], tl.float32)
    dv = tl.zeros([BN, BD], tl.float32)
    for first in range(0, queries, BM):
        row = tl.arange(0, BM)
        live = row < queries - first
        q = load_rows(q_base, first, row, q_n, live, D, BD)  # [BM, BD]
        grad = load_rows(grad_base, first, row, g_n, live, D, BD)  # [BM, BD]
        lse = _load_lse(lse_ptr + pair * queries + first, row, live)
        s = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale_log2 + bias[:, None]  # [BN, BM]
        p = tl.exp2(s - lse[None, :])
        dv = tl.dot(p.to(grad.dtype), grad, dv, input_precision=PRECISION)
        dp = tl.dot(v, tl.trans(grad), input_precision=PRECISION)  # [BN, BM]
        dp *= p
        if WHOLE_HEAD:
            delta = tl.sum(dp, 0)
        else:
            delta = tl.load(delta_ptr + pair * queries + first + row, mask=live, other=0.0)
        ds = (dp - p * delta[None, :]).to(q.dtype)  # [BN, BM]; P (dP - delta) in one fused step after the product
        dk = tl.dot(ds, q, dk, input_precision=PRECISION)
        if WHOLE_HEAD:
            dq = tl.dot(tl.trans(k), ds, input_precision=PRECISION)  # [BD, BM]
            store_rows(dq_base, first, row, heads * D, live, tl.trans(dq) * scale, D, BD)
    base = (image * keys * heads + head) * D
    store_rows(dk_ptr + base, start, place, heads * D, exists, dk * scale, D, BD)
    store_rows(dv_ptr + base, start, place, heads * D, exists, dv, D, BD)


def proportional_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    size: Tensor | None,
    out: Tensor,
    logsumexp: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    refuse_double(q)
    check_depth(q)
    grad, q, k, v = (unit_stride_rows(x) for x in (grad, q, k, v))
    logsumexp = logsumexp.contiguous()
    batch, heads, queries, depth = q.shape
    keys = k.shape[2]
    dq, dk, dv = heads_last(q, queries), heads_last(k, keys), heads_last(v, keys)
    if q.numel() == 0 or k.numel() == 0:  # an empty sum
        return dq.zero_(), dk.zero_(), dv.zero_()
    tuned = config(STEM, depth=width(depth), bytes=q.element_size(), keys=bucket(keys))
    whole_head = bool(tuned["whole_head"]) and keys <= tuned["key_cols"]
    sizes = q if size is None else size.contiguous()
    common = {
        "HAS_SIZE": size is not None, "D": depth, "BD": width(depth), "PRECISION": precision(q.dtype),
    }  # fmt: skip
    strides = (*grad.stride()[:3], *q.stride()[:3], *k.stride()[:3], *v.stride()[:3])
    delta = logsumexp
    if not whole_head:
        out = unit_stride_rows(out)
        delta = torch.empty_like(logsumexp)
        _backward_queries[(batch * heads * divide_up(queries, tuned["query_rows"]),)](
            grad, q, k, v, sizes, out, logsumexp, delta, dq, queries, keys, heads,
            *strides, *out.stride()[:3], scale, scale * LOG2_E, **common,
            BM=tuned["query_rows"], BN=tuned["query_cols"],
            num_warps=tuned["query_num_warps"], num_stages=tuned["query_num_stages"],
        )  # fmt: skip
    _backward_keys[(batch * heads * divide_up(keys, tuned["key_cols"]),)](
        grad, q, k, v, sizes, logsumexp, delta, dq, dk, dv, queries, keys, heads,
        *strides, scale, scale * LOG2_E, **common, WHOLE_HEAD=whole_head, BM=tuned["key_rows"], BN=tuned["key_cols"],
        num_warps=tuned["key_num_warps"], num_stages=tuned["key_num_stages"],
    )  # fmt: skip
    return dq, dk, dv
