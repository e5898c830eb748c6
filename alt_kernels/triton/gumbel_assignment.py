"""Cosine-Gumbel assignment in Triton: the corpus streams past a tile of rows, nothing of size M x K is ever kept.

Symbols: M rows of x, K entities, d channels (D), BM rows and BK entities of a tile, BD channels of a product's step,
DV channels of a soft output's tile, S splits of the entities.

Floor: the cosines, 2 M K d FLOP, beside 24 integer operations of Philox for each of M K logits; bytes (M + K) d in, the
output M d. ``_assign`` keeps a running maximum, argmax and sum of exponentials for each row, and in soft mode the
weighted sum of entities, so the softmax is done in one pass. Where rows are few, S programs share a row tile's entities
and ``_join`` combines them in a fixed order: the same bits in every run.

Norms go into the epilogue: rows are multiplied as they are and the products by 1 / |x| and 1 / |s|. Products of
float16 and bfloat16 are exact in float32, so a cosine is off by the float32 sum alone. float32 products run as tf32x3,
three products of parts of 11 bits: off by less than 2^-20 |x||s|, less than a float32 sum of 512 terms may be.
Rows of float32 and bfloat16, whose products could overflow, are first divided by a power of two near their
largest entry (exact; a copy of K d and M d elements); float16 rows are read as they are.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .aot_case import AotCase
from .host import refuse_double, unit_stride
from .philox import gumbel_tile, tile_columns
from .tuning import config

NONE, TENSOR, SEED = 0, 1, 2  # where the noise comes from


@triton.jit
def power_below(x):
    """The largest power of two <= x, for x >= 0 within 2^-126 .. 2^126."""
    bits = x.to(tl.int32, bitcast=True) & 0x7F800000
    return tl.minimum(tl.maximum(bits, 1 << 23), 253 << 23).to(tl.float32, bitcast=True)


@triton.jit
def _prepare_tile(
    row_ptr,  # [n, D], strides (stride, 1)
    copy_ptr,  # [n, D] contiguous, written where COPY
    inverse_ptr,  # [n] float32: 1 / length of the row as the other kernels read it, 0 for a zero row
    scale_ptr,  # [n] float32: what was divided out, a power of two
    tile,
    count,
    stride,
    D: tl.constexpr,
    COPY: tl.constexpr,
    RESCALE: tl.constexpr,
    R: tl.constexpr,
    BC: tl.constexpr,
):
    row = tile * R + tl.arange(0, R)
    live = row < count
    channel = tl.arange(0, BC)
    inside = live[:, None] & (channel < D)[None, :]
    at = row.to(tl.int64)[:, None]
    value = tl.load(row_ptr + at * stride + channel[None, :], mask=inside, other=0.0).to(tl.float32)
    scale = tl.full([R], 1.0, tl.float32)
    if RESCALE:
        scale = power_below(tl.max(tl.abs(value), 1))
        value = value * (1.0 / scale)[:, None]
    square = tl.sum(value * value, 1)
    # An infinite or NaN entry makes the row's every cosine NaN.
    finite = tl.where(
        square < float("inf"), tl.div_rn(1.0, tl.sqrt_rn(tl.where(square == 0.0, 1.0, square))), float("nan")
    )
    tl.store(inverse_ptr + row, tl.where(square == 0.0, 0.0, finite), mask=live)
    tl.store(scale_ptr + row, scale, mask=live)
    if COPY:
        tl.store(copy_ptr + at * D + channel[None, :], value.to(copy_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "count"])
def _prepare(
    x_ptr,  # [M, d], strides (x_m, 1)
    e_ptr,  # [K, d], strides (e_k, 1)
    x_copy_ptr,  # [M, d], written where COPY_X
    e_copy_ptr,  # [K, d], written where COPY_E
    rx_ptr,  # [M] float32
    re_ptr,  # [K] float32
    sx_ptr,  # [M] float32
    se_ptr,  # [K] float32
    rows,
    count,
    x_m,
    e_k,
    D: tl.constexpr,
    COPY_X: tl.constexpr,
    COPY_E: tl.constexpr,
    RESCALE: tl.constexpr,
    R: tl.constexpr,
    BC: tl.constexpr,
):
    """One program: R rows of x, or, after those, R entities: 1 / length, the power of two divided out, the copy."""
    tile = tl.program_id(0)
    tiles = tl.cdiv(rows, R)
    if tile < tiles:
        _prepare_tile(x_ptr, x_copy_ptr, rx_ptr, sx_ptr, tile, rows, x_m, D, COPY_X, RESCALE, R, BC)
    else:
        _prepare_tile(e_ptr, e_copy_ptr, re_ptr, se_ptr, tile - tiles, count, e_k, D, COPY_E, RESCALE, R, BC)


@triton.jit
def load_rows(ptr, row, start, D: tl.constexpr, BD: tl.constexpr):
    """Channels start .. start + BD of the given rows, ``[rows, BD]``; rows are valid, channels beyond D are 0."""
    channel = start + tl.arange(0, BD)
    at = ptr + row.to(tl.int64)[:, None] * D + channel[None, :]
    if D % BD == 0:
        return tl.load(at)
    return tl.load(at, mask=(channel < D)[None, :], other=0.0)


@triton.jit
def add_noise(z, noise_ptr, noise_m, noise_k, seed, row, first, column, NOISE: tl.constexpr, BK: tl.constexpr):
    """z ``[rows, BK]`` + the noise of these rows and columns; ``column`` are the valid ones nearest to the tile's."""
    if NOISE == 1:
        at = noise_ptr + row.to(tl.int64)[:, None] * noise_m + column.to(tl.int64)[None, :] * noise_k
        z += tl.load(at).to(tl.float32)
    if NOISE == 2:
        z += gumbel_tile(seed, row.to(tl.int64), first, BK)
    return z


@triton.jit(do_not_specialize=["rows", "count", "per_split"])
def _assign(
    x_ptr,  # [M, d] contiguous, as _prepare left it
    e_ptr,  # [K, d] contiguous, as _prepare left it
    rx_ptr,  # [M] float32, 1 / length
    re_ptr,  # [K] float32, 1 / length
    se_ptr,  # [K] float32, entity = its row of e times this
    tau_ptr,  # 0-d
    noise_ptr,  # [M, K], strides (noise_m, noise_k), read where NOISE is 1
    seed_ptr,  # 0-d int64, read where NOISE is 2
    index_ptr,  # [S, M] int64
    peak_ptr,  # [S, M] float32: the largest logit; where S is 1 the log-normalizer
    sum_ptr,  # [S, M] float32: sum of exp(logit - peak), written where SPLIT
    acc_ptr,  # [S, M, d] float32 where SPLIT: sum of exp(logit - peak) s_k; else [M, d]: the soft output
    rows,
    count,
    per_split,  # entities of a split, a multiple of BK
    noise_m,
    noise_k,
    D: tl.constexpr,
    NOISE: tl.constexpr,
    SOFT: tl.constexpr,
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
    DV: tl.constexpr,
):
    """One program: BM rows against the entities of one split, in soft mode DV channels of the output."""
    split = tl.program_id(1)
    place = tl.program_id(0) * BM + tl.arange(0, BM)
    live = place < rows
    row = tl.minimum(place, rows - 1)  # reads of rows that are not there go to the last one: no masks
    scale_x = tl.load(rx_ptr + row)
    sharpness = 1.0 / tl.load(tau_ptr).to(tl.float32)
    seed = tl.load(seed_ptr) if NOISE == 2 else 0
    WHOLE: tl.constexpr = BD >= D
    if WHOLE:
        x = load_rows(x_ptr, row, 0, D, BD)  # stays for the whole corpus
    value_start = tl.program_id(2) * DV

    peak = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    index = tl.zeros([BM], tl.int32)
    if SOFT:
        acc = tl.zeros([BM, DV], tl.float32)
    begin = split * per_split
    for first in range(begin, tl.minimum(begin + per_split, count), BK):
        column = first + tile_columns(BK)
        valid = column < count
        entity = tl.minimum(column, count - 1)
        if WHOLE:
            e = load_rows(e_ptr, entity, 0, D, BD)
            z = tl.dot(x, tl.trans(e), input_precision=PRECISION)
        else:
            z = tl.zeros([BM, BK], tl.float32)
            for start in range(0, D, BD):
                xs = load_rows(x_ptr, row, start, D, BD)
                es = load_rows(e_ptr, entity, start, D, BD)
                z = tl.dot(xs, tl.trans(es), z, input_precision=PRECISION)
        z = z * (scale_x * sharpness)[:, None] * tl.load(re_ptr + entity)[None, :]
        z = add_noise(z, noise_ptr, noise_m, noise_k, seed, row, first, entity, NOISE, BK)
        z = tl.where(valid[None, :], z, float("-inf"))

        # NaN never wins, but stays in the sum. The lowest column among equals: places are not in order.
        clean = tl.where(z == z, z, float("-inf"))
        tile_peak = tl.max(clean, 1)
        best = tl.min(tl.where((clean == tile_peak[:, None]) & valid[None, :], column[None, :], 0x7FFFFFFF), 1)
        index = tl.where(tile_peak > peak, best, index)
        new_peak = tl.maximum(peak, tile_peak)
        # An infinite peak would make inf - inf; any finite number in its place gives the right limit.
        origin = tl.where(tl.abs(new_peak) < float("inf"), new_peak, 0.0)
        keep = tl.where(peak > float("-inf"), tl.exp(peak - origin), 1.0)
        p = tl.exp(z - origin[:, None])
        total = total * keep + tl.sum(p, 1)
        peak = new_peak
        if SOFT:
            if e_ptr.dtype.element_ty == tl.float16:
                p = p * 32768.0  # or most of a large corpus would be among float16's subnormals
            else:
                p = p * tl.load(se_ptr + entity)[None, :]
            if WHOLE and DV == BD:
                values = e
            else:
                values = load_rows(e_ptr, entity, value_start, D, DV)
            acc = tl.dot(p.to(values.dtype), values, acc * keep[:, None], input_precision=PRECISION)

    out = split.to(tl.int64) * rows + place
    if SOFT:
        if e_ptr.dtype.element_ty == tl.float16:
            acc = acc * 3.0517578125e-05
        if not SPLIT:
            acc = acc / total[:, None]
        channel = value_start + tl.arange(0, DV)
        target = acc_ptr + out[:, None] * D + channel[None, :]
        tl.store(target, acc.to(acc_ptr.dtype.element_ty), mask=live[:, None] & (channel < D)[None, :])
    write = live & (tl.program_id(2) == 0)
    tl.store(index_ptr + out, index.to(tl.int64), mask=write)
    if SPLIT:
        tl.store(peak_ptr + out, peak, mask=write)
        tl.store(sum_ptr + out, total, mask=write)
    else:
        origin = tl.where(tl.abs(peak) < float("inf"), peak, 0.0)
        tl.store(peak_ptr + out, origin + tl.log(total), mask=write)


@triton.jit(do_not_specialize=["rows", "splits"])
def _join(
    index_part_ptr,  # [S, M] int64
    peak_ptr,  # [S, M] float32
    sum_ptr,  # [S, M] float32
    acc_ptr,  # [S, M, d] float32, read where SOFT
    index_ptr,  # [M] int64
    normalizer_ptr,  # [M] float32
    out_ptr,  # [M, d], written where SOFT
    rows,
    splits,
    D: tl.constexpr,
    SOFT: tl.constexpr,
    R: tl.constexpr,
    BC: tl.constexpr,
):
    """One program: R rows (soft: BC channels of them), the results of all splits in ascending order."""
    row = tl.program_id(0) * R + tl.arange(0, R)
    live = row < rows
    at = row.to(tl.int64)
    peak = tl.full([R], float("-inf"), tl.float32)
    index = tl.zeros([R], tl.int64)
    for split in range(0, splits):
        here = at + split * rows.to(tl.int64)
        part = tl.load(peak_ptr + here, mask=live, other=float("-inf"))
        better = part > peak  # strictly: equals keep the lower index
        index = tl.where(better, tl.load(index_part_ptr + here, mask=live, other=0), index)
        peak = tl.where(better, part, peak)
    origin = tl.where(tl.abs(peak) < float("inf"), peak, 0.0)
    total = tl.zeros([R], tl.float32)
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = live[:, None] & (channel < D)[None, :]
    acc = tl.zeros([R, BC], tl.float32)
    for split in range(0, splits):
        here = at + split * rows.to(tl.int64)
        part = tl.load(peak_ptr + here, mask=live, other=0.0)
        part = tl.where(tl.abs(part) < float("inf"), part, 0.0)  # the origin of that split's sum
        empty = tl.load(peak_ptr + here, mask=live, other=0.0) == float("-inf")
        weight = tl.where(empty, 1.0, tl.exp(part - origin))
        total += tl.load(sum_ptr + here, mask=live, other=1.0) * weight
        if SOFT:
            acc += tl.load(acc_ptr + here[:, None] * D + channel[None, :], mask=inside, other=0.0) * weight[:, None]
    if SOFT:
        result = (acc / total[:, None]).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + at[:, None] * D + channel[None, :], result, mask=inside)
    write = live & (tl.program_id(1) == 0)
    tl.store(index_ptr + at, index, mask=write)
    tl.store(normalizer_ptr + at, origin + tl.log(total), mask=write)


class Prepared(NamedTuple):
    """What every kernel of the op reads; ``dtype`` is the one products are taken in."""

    dtype: torch.dtype
    x: Tensor  # [M, d]
    entities: Tensor  # [K, d]
    rx: Tensor  # [M] float32, 1 / length
    re: Tensor  # [K]
    sx: Tensor  # [M] float32, the given row = the prepared one times this
    se: Tensor  # [K]


def precision(dtype: torch.dtype) -> str:
    """Of products of float32; half precision has one only."""
    return "tf32x3" if dtype == torch.float32 else "tf32"


def prepare(x: Tensor, entities: Tensor) -> Prepared:
    """Unit strides, one dtype (the smaller one is widened, as torch promotes), magnitudes whose products are safe."""
    dtype = torch.promote_types(x.dtype, entities.dtype)
    rescale = dtype != torch.float16
    given = [unit_stride(t) for t in (x, entities)]
    copy = [rescale or t.dtype != dtype or not t.is_contiguous() for t in given]
    ready = [torch.empty(t.shape, dtype=dtype, device=t.device) if c else t for t, c in zip(given, copy, strict=True)]
    (rows, depth), count = x.shape, entities.shape[0]
    rx, re = (torch.empty(n, dtype=torch.float32, device=x.device) for n in (rows, count))
    sx, se = torch.empty_like(rx), torch.empty_like(re)
    width = triton.next_power_of_2(depth)
    tile = max(1, 4096 // width)
    _prepare[(triton.cdiv(rows, tile) + triton.cdiv(count, tile),)](
        *given, *ready, rx, re, sx, se, rows, count, given[0].stride(0), given[1].stride(0),
        D=depth, COPY_X=copy[0], COPY_E=copy[1], RESCALE=rescale, R=tile, BC=width, num_warps=4, num_stages=1,
    )  # fmt: skip
    return Prepared(dtype, ready[0], ready[1], rx, re, sx, se)


def noise_arguments(noise: Tensor | None, seed: Tensor | None, other: Tensor) -> tuple[int, Tensor, Tensor, int, int]:
    """(NOISE, noise, seed, strides of noise); ``other`` stands in for what is absent."""
    if noise is not None:
        return TENSOR, noise, other, noise.stride(0), noise.stride(1)
    return NONE if seed is None else SEED, other, other if seed is None else seed, 0, 0


def chosen(stem: str, prefix: str, depth: int, dtype: torch.dtype) -> dict[str, int]:
    """One kernel's part of a file of configurations, its widths no larger than ``depth`` needs."""
    tuned = config(stem, depth=depth, bits=torch.finfo(dtype).bits)
    use = {key.removeprefix(f"{prefix}_"): value for key, value in tuned.items() if key.startswith(f"{prefix}_")}
    width = max(16, triton.next_power_of_2(depth))
    return use | {name: min(use[name], width) for name in ("BD", "DV") if name in use}


def split_plan(length: int, tile: int, others: int, programs: int) -> tuple[int, int]:
    """(splits, a split's share of ``length``): about ``programs`` programs with ``others`` tiles across; none empty."""
    tiles = triton.cdiv(length, tile)
    each = triton.cdiv(tiles, max(1, min(tiles, programs // others)))
    return triton.cdiv(tiles, each), each * tile


def gumbel_assignment(
    x: Tensor, entities: Tensor, tau: Tensor, noise: Tensor | None, seed: Tensor | None, hard: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(output [M, d], index [M], log_normalizer [M]) of ``x`` [M, d], ``entities`` [K, d]; tau stays on the device."""
    refuse_double(x)
    refuse_double(entities)
    (rows, depth), count = x.shape, entities.shape[0]
    dtype = torch.promote_types(x.dtype, entities.dtype)
    index = torch.empty(rows, dtype=torch.int64, device=x.device)
    normalizer = torch.empty(rows, dtype=torch.float32, device=x.device)
    output = x.new_empty((0 if hard else rows, depth), dtype=dtype)
    if rows == 0:
        return x.new_empty((0, depth), dtype=dtype), index, normalizer
    ready = prepare(x, entities)
    use = chosen("gumbel_assignment", "hard" if hard else "soft", depth, dtype)
    wide = 1 if hard else triton.cdiv(depth, use["DV"])
    tiles = triton.cdiv(rows, use["BM"])
    splits, per_split = split_plan(count, use["BK"], tiles * wide, use["programs"])
    kind, noise, seed, noise_m, noise_k = noise_arguments(noise, seed, ready.rx)
    parts = index, normalizer, normalizer, output
    if splits > 1:
        peak = normalizer.new_empty((splits, rows))
        parts = index.new_empty((splits, rows)), peak, torch.empty_like(peak), peak
        if not hard:
            parts = (*parts[:3], peak.new_empty((splits, rows, depth)))
    _assign[(tiles, splits, wide)](
        ready.x, ready.entities, ready.rx, ready.re, ready.se, tau, noise, seed, *parts,
        rows, count, per_split, noise_m, noise_k,
        D=depth, NOISE=kind, SOFT=not hard, SPLIT=splits > 1, PRECISION=precision(dtype),
        BM=use["BM"], BK=use["BK"], BD=use["BD"], DV=use["DV"],
        num_warps=use["num_warps"], num_stages=use["num_stages"],
    )  # fmt: skip
    if splits > 1:
        width = 16 if hard else min(128, triton.next_power_of_2(depth))
        _join[(triton.cdiv(rows, 32), 1 if hard else triton.cdiv(depth, width))](
            *parts, index, normalizer, output, rows, splits,
            D=depth, SOFT=not hard, R=32, BC=width, num_warps=4, num_stages=1,
        )  # fmt: skip
    if hard:
        output = entities.index_select(0, index).to(dtype)
    return output, index, normalizer


# Why a case may spill on the one target where it does; the other two have none.
SMALL_STEP = "sm_100, two accesses; BD=32 has none, at twice the steps of a product"
NONE_FOUND = "sm_80; of the tiles tried none has no spill: the logits, dA, dl and the noise stand beside the sums"
REASONS = {
    "hard seed d=512 bf16": SMALL_STEP,
    "hard seed d=512 fp16": SMALL_STEP,
    "rows seed d=512 fp16": NONE_FOUND,
    "rows seed d=512 fp32": NONE_FOUND,
    "entities seed d=512 fp32": NONE_FOUND,
}
HALF = {"x_ptr", "e_ptr", "grad_ptr"}  # pointers to what the products read
NAMES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def signature(kernel: Any, dtype: str, constants: dict[str, Any], **pointers: str) -> dict[str, str]:
    """Types of a launch on inputs of ``dtype``: float32 and int32 where nothing else is said."""
    types = {"seed_ptr": "*i64", "index_ptr": "*i64"} | dict.fromkeys(HALF, f"*{dtype}") | pointers
    names = [name for name in kernel.arg_names if name not in constants]
    return {name: types.get(name, "*fp32" if name.endswith("_ptr") else "i32") for name in names}


def aot_case(kernel: Any, stem: str, prefix: str, label: str, dtype: str, depth: int, **rest: Any) -> AotCase:
    """One kernel as it is launched at ``depth`` channels of ``dtype`` on a GPU without an entry of its own."""
    use = chosen(stem, prefix, depth, NAMES[dtype])
    constants = {"D": depth, "PRECISION": precision(NAMES[dtype]), "BOUND": dtype == "fp16", **use, **rest}
    constants = {name: constants[name] for name in kernel.arg_names if name in constants}
    types = signature(kernel, dtype, constants, acc_ptr=f"*{dtype}")
    warps, stages = use["num_warps"], use["num_stages"]
    name = f"{label} d={depth} {dtype}"
    return AotCase(name, kernel, types, constants, warps, stages, dtype != "fp32", REASONS.get(name, ""))


def _aot() -> list[AotCase]:
    stem = "gumbel_assignment"
    cases = [
        aot_case(_assign, stem, mode, f"{mode} {noise}", dtype, 512, NOISE=kind, SOFT=mode == "soft", SPLIT=False)
        for dtype in NAMES
        for mode, noise, kind in (("hard", "seed", SEED), ("soft", "seed", SEED), ("hard", "no noise", NONE))
    ]
    small = {"D": 512, "COPY_X": True, "COPY_E": True, "RESCALE": True, "R": 8, "BC": 512}
    types = signature(_prepare, "bf16", small, x_copy_ptr="*bf16", e_copy_ptr="*bf16")
    cases.append(AotCase("prepare d=512 bf16", _prepare, types, small, 4, 1, False))
    for soft, width in ((False, 16), (True, 128)):
        join = {"D": 512, "SOFT": soft, "R": 32, "BC": width}
        types = signature(_join, "bf16", join, index_part_ptr="*i64", out_ptr="*bf16")
        cases.append(AotCase(f"join {'soft' if soft else 'hard'} d=512 bf16", _join, types, join, 4, 1, False))
    return cases


AOT = _aot()
