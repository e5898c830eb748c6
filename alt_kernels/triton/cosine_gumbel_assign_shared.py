"""Helpers of the cosine-Gumbel assignment kernels: preparation of inputs, loads, noise, launch plans.

Symbols as in cosine_gumbel_assign.py. ``_prepare`` finds 1 / |x| and 1 / |s|. Products of float32 and bfloat16 rows
could overflow, so these rows are first divided by a power of two near their largest entry (exact). In the forward only
rows of extreme length are copied for that, and in the backward all of x. float16 rows are read in place. Entities are
always copied, in the order of ``philox.tile_columns``, in which a thread draws the noise that it adds. They are
zero-padded to whole tiles, so that kernels read them without masks.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch_configs
from .host import divide_up, round_up_to_power, unit_stride
from .launch import cache_launches
from .philox import SHIFT, noise_tile, place_of, tile_columns

NONE, TENSOR, SEED = 0, 1, 2  # the source of the noise
STEP = 64  # channels per step of rows that are too long to stay in shared memory
PAD = 256  # entities are padded to a multiple of the largest tile
LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
# Squared lengths 2^-80 .. 2^80: no sum of squares and no product with a prepared entity overflows or loses bits.
LEAST_SQUARE: tl.constexpr = tl.constexpr(8.271806125530277e-25)
MOST_SQUARE: tl.constexpr = tl.constexpr(1.2089258196146292e24)
#: What of x is copied: nothing, the rows of extreme length, or everything.
COPY_NONE, COPY_EXTREME, COPY_ALL = 0, 1, 2


@triton.jit
def power_below(x):
    """Returns the largest power of two <= x, for x >= 0, within 2^-126 .. 2^126."""
    bits = x.to(tl.int32, bitcast=True) & 0x7F800000
    return tl.minimum(tl.maximum(bits, 1 << 23), 253 << 23).to(tl.float32, bitcast=True)


@triton.jit
def _prepare_tile(
    row_ptr,  # [n, D], strides (stride, 1)
    copy_ptr,  # [n, D] contiguous, written where COPY is not 0
    inverse_ptr,  # [n] float32: 1 / length of the row as the other kernels read it, 0 for a zero row
    scale_ptr,  # [n] float32: the power of two that was divided out
    tile,
    count,
    stride,
    D: tl.constexpr,
    COPY: tl.constexpr,
    RESCALE: tl.constexpr,
    PLACES: tl.constexpr,  # write rows to their places, and zeros past ``count``
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
    if COPY == 1:
        square = tl.sum(value * value, 1)
        peak = tl.max(tl.abs(value), 1)
        extreme = ((square < LEAST_SQUARE) | (square > MOST_SQUARE)) & (peak > 0.0) & (peak < float("inf"))
        scale = tl.where(extreme, power_below(peak), 1.0)
        value = value * (1.0 / scale)[:, None]
    elif RESCALE:
        scale = power_below(tl.max(tl.abs(value), 1))
        value = value * (1.0 / scale)[:, None]
    square = tl.sum(value * value, 1)
    # An infinite or NaN entry makes every cosine of the row NaN.
    finite = tl.where(
        square < float("inf"), tl.div_rn(1.0, tl.sqrt_rn(tl.where(square == 0.0, 1.0, square))), float("nan")
    )
    inverse = tl.where(square == 0.0, 0.0, finite)
    if PLACES:  # for whole tiles
        place = place_of(row)
        tl.store(inverse_ptr + place, inverse)
        tl.store(scale_ptr + place, scale)
        target = copy_ptr + place.to(tl.int64)[:, None] * D + channel[None, :]
        tl.store(target, value.to(copy_ptr.dtype.element_ty), mask=(channel < D)[None, :])
    else:
        tl.store(inverse_ptr + row, inverse, mask=live)
        tl.store(scale_ptr + row, scale, mask=live)
        if COPY != 0:
            written = inside & (scale != 1.0)[:, None] if COPY == 1 else inside
            tl.store(copy_ptr + at * D + channel[None, :], value.to(copy_ptr.dtype.element_ty), mask=written)


@cache_launches(do_not_specialize=["rows", "count"])
def _prepare(
    x_ptr,  # [M, d], strides (x_m, 1)
    e_ptr,  # [K, d], strides (e_k, 1)
    x_copy_ptr,  # [M, d], written where COPY_X is not 0
    e_copy_ptr,  # [P, d], by places
    rx_ptr,  # [M] float32
    re_ptr,  # [P] float32
    sx_ptr,  # [M] float32
    se_ptr,  # [P] float32
    rows,
    count,
    x_m,
    e_k,
    D: tl.constexpr,
    COPY_X: tl.constexpr,
    RESCALE: tl.constexpr,
    R: tl.constexpr,
    BC: tl.constexpr,
):
    """One program: 1 / length, the divided power of two and the copy of R rows of x or, after those, of R entities."""
    tile = tl.program_id(0)
    tiles = tl.cdiv(rows, R)
    if tile < tiles:
        _prepare_tile(x_ptr, x_copy_ptr, rx_ptr, sx_ptr, tile, rows, x_m, D, COPY_X, RESCALE, False, R, BC)
    else:
        _prepare_tile(e_ptr, e_copy_ptr, re_ptr, se_ptr, tile - tiles, count, e_k, D, 2, RESCALE, True, R, BC)


@triton.jit
def load_rows(ptr, row, start, D: tl.constexpr, BD: tl.constexpr):
    """Loads channels start .. start + BD of valid rows, ``[rows, BD]``; channels past D are 0."""
    channel = start + tl.arange(0, BD)
    at = ptr + row.to(tl.int64)[:, None] * D + channel[None, :]
    if D % BD == 0:
        return tl.load(at)
    return tl.load(at, mask=(channel < D)[None, :], other=0.0)


@triton.jit
def load_tile(ptr, first, start, D: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr):
    """Loads the rows first .. first + BK as ``load_rows`` does, by one address and constant offsets."""
    channel = tl.arange(0, BD)
    at = ptr + tl.full([], first, tl.int64) * D + start + (tl.arange(0, BK)[:, None] * D + channel[None, :])
    if D % BD == 0:
        return tl.load(at)
    return tl.load(at, mask=(start + channel < D)[None, :], other=0.0)


@triton.jit
def draw_noise(
    noise_ptr, noise_m, noise_k, seed, row, first, count, NOISE: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr
):
    """Returns minus the noise ``[BM, BK]`` of a tile, over log 2."""
    if NOISE == 1:
        column = tl.minimum(first + tile_columns(BK), count - 1)
        at = noise_ptr + row.to(tl.int64)[:, None] * noise_m + column.to(tl.int64)[None, :] * noise_k
        return tl.load(at).to(tl.float32) * -LOG2E
    elif NOISE == 2:
        return noise_tile(seed, row.to(tl.int64), first, BK)
    else:
        return tl.zeros([BM, BK], tl.float32)


@triton.jit
def noise_shift(NOISE: tl.constexpr):
    """Returns the constant that :func:`draw_noise` leaves out of every logit, over log 2."""
    return SHIFT if NOISE == 2 else 0.0


class Prepared(NamedTuple):
    """Inputs of every kernel of the op; ``dtype`` is that of products, P the number of entities with padding."""

    dtype: torch.dtype
    x: Tensor  # [M, d]; the copy of a row that has one
    given: Tensor  # [M, d], the rows without a copy
    source: Tensor  # [K, d], the entities as given, with unit stride
    entities: Tensor  # [P, d], in the order of places
    rx: Tensor  # [M] float32, 1 / length
    re: Tensor  # [P]; 0 where there is no entity
    sx: Tensor  # [M] float32, the given row = the prepared one times this
    se: Tensor  # [P]


def precision(dtype: torch.dtype) -> str:
    """Returns the ``input_precision`` of a dot, which matters for float32 only."""
    return "tf32x3" if dtype == torch.float32 else "tf32"


def prepare(x: Tensor, entities: Tensor, *, copy_all: bool) -> Prepared:
    """Returns the inputs with unit strides, in the promoted dtype, with magnitudes whose products are safe.

    Without ``copy_all`` rows whose sx is 1 may have no copy; the caller reads them in ``given``.
    """
    dtype = torch.promote_types(x.dtype, entities.dtype)
    rescale = dtype != torch.float16
    given, source = unit_stride(x), unit_stride(entities)
    (rows, depth), count = x.shape, entities.shape[0]
    padded = divide_up(count, PAD) * PAD
    usable = given.dtype == dtype and given.is_contiguous()
    copy = COPY_ALL if not usable or (rescale and copy_all) else COPY_EXTREME if rescale else COPY_NONE
    ready = x.new_empty(rows, depth, dtype=dtype) if copy else given
    places = x.new_empty(padded, depth, dtype=dtype)
    rx, re = x.new_empty(rows, dtype=torch.float32), x.new_empty(padded, dtype=torch.float32)
    sx, se = torch.empty_like(rx), torch.empty_like(re)
    width = round_up_to_power(depth)
    tile = max(1, min(PAD, 4096 // width))
    _prepare[(divide_up(rows, tile) + padded // tile,)](
        given, source, ready, places, rx, re, sx, se, rows, count, given.stride(0), source.stride(0),
        D=depth, COPY_X=copy, RESCALE=rescale, R=tile, BC=width, num_warps=4, num_stages=1,
    )  # fmt: skip
    return Prepared(dtype, ready, ready if copy == COPY_ALL else given, source, places, rx, re, sx, se)


def noise_arguments(noise: Tensor | None, seed: Tensor | None, other: Tensor) -> tuple[int, Tensor, Tensor, int, int]:
    """Returns NOISE, noise, seed and the strides of noise; ``other`` replaces an absent tensor."""
    if noise is not None:
        return TENSOR, noise, other, noise.stride(0), noise.stride(1)
    return NONE if seed is None else SEED, other, other if seed is None else seed, 0, 0


def select_config(stem: str, prefix: str, depth: int, dtype: torch.dtype) -> dict[str, int]:
    """Returns one kernel's part of an op's configuration, with widths no larger than ``depth`` needs.

    All launches share it, so it must not be changed.
    """
    if launch_configs.is_forced(stem):
        return kernel_fields(launch_configs.config(stem, depth=depth, bits=torch.finfo(dtype).bits), prefix, depth)
    return _select_config(stem, launch_configs.device_name(), prefix, depth, dtype)


@functools.cache
def _select_config(stem: str, device: str, prefix: str, depth: int, dtype: torch.dtype) -> dict[str, int]:
    return kernel_fields(launch_configs.config(stem, depth=depth, bits=torch.finfo(dtype).bits), prefix, depth)


def kernel_fields(tuned: Mapping[str, int], prefix: str, depth: int) -> dict[str, int]:
    """Returns the fields of one kernel, which start with ``prefix``."""
    use = {key.removeprefix(f"{prefix}_"): value for key, value in tuned.items() if key.startswith(f"{prefix}_")}
    width = max(16, round_up_to_power(depth))
    use |= {name: min(use[name], width) for name in ("BD", "DV") if name in use}
    if use.get("BD", depth) < depth:  # a row that is not kept whole is read in steps that every stage has room for
        use["BD"] = min(use["BD"], STEP)
    return use


def with_noise(use: dict[str, int], kind: int) -> dict[str, int]:
    """Returns ``use`` with one stage less where the noise is a tensor, whose tile takes room in every stage."""
    return use | {"num_stages": max(1, use["num_stages"] - 1)} if kind == TENSOR else use


SETUP = 4  # the cost of a program's start in tiles: its rows come from memory and nothing overlaps the loads


def tiling(use: dict[str, int]) -> dict[str, int]:
    """Returns the fields that are arguments of the kernel."""
    return {name: value for name, value in use.items() if name != "programs"}


@functools.cache
def split_plan(length: int, tile: int, others: int, programs: int) -> tuple[int, int]:
    """Returns the number of splits of ``length`` and their share, for ``others`` tiles across.

    The GPU runs ``programs`` at a time. The plan takes the fewest turns: full waves where there are many tiles, one
    tile per split where there are few. No split is empty.
    """
    tiles = divide_up(length, tile)
    best = (float("inf"), 1)
    for waves in range(1, 33):
        wanted = min(tiles, max(1, waves * programs // others))  # the most that these waves hold
        each = divide_up(tiles, wanted)
        splits = divide_up(tiles, each)
        best = min(best, (divide_up(splits * others, programs) * (each + SETUP), splits))
    each = divide_up(tiles, best[1])
    return divide_up(tiles, each), each * tile


class Part(NamedTuple):
    """Rows that one launch covers, and the split of the entities among its programs."""

    above: int  # rows before them
    rows: int
    tiles: int
    splits: int
    share: int  # entities of a split


def row_plan(rows: int, use: dict[str, int], across: int, count: int) -> tuple[Part, ...]:
    """Returns the launches: full waves of programs that each pass over all entities, then the remaining rows, split.

    ``across`` is the number of programs on one tile of rows and one split.
    """
    return _row_plan(rows, use["BM"], use["BK"], use["programs"], across, count)


@functools.lru_cache(2048)
def _row_plan(rows: int, height: int, tile: int, programs: int, across: int, count: int) -> tuple[Part, ...]:
    at_once = max(1, programs // across)
    tiles = divide_up(rows, height)
    full = tiles // at_once * at_once
    plan = []
    if full:
        plan.append(Part(0, min(rows, full * height), full, 1, divide_up(count, tile) * tile))
    if left := tiles - full:
        split = split_plan(count, tile, left * across, programs)
        plan.append(Part(full * height, rows - full * height, left, *split))
    return tuple(plan)
