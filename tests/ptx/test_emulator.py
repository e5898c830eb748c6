"""The emulator on PTX written by hand: numbers, predicates, loops and warps, as NVIDIA's documentation has them."""

from __future__ import annotations

import numpy as np
import pytest

from . import arithmetic
from .arithmetic import f32, f64, i32
from .programs import STORE, run, unary, words


def test_threads_know_their_place() -> None:
    body = "mov.u32 %r5, %ctaid.x; mad.lo.s32 %r5, %r5, 64, %r0; mad.wide.u32 %rd3, %r5, 4, %rd1;" + STORE
    assert run(body, words([0]), programs=70).tolist() == list(range(70 * 64))  # more than run side by side


def test_whole_numbers_wrap_divide_and_shift_as_in_the_documentation() -> None:
    big = np.array([2**31 - 1, -(2**31), -7, 7, 0, -1], i32)
    assert unary("add.s32 %r5, %r4, 1;", big).tolist() == [-(2**31), -(2**31) + 1, -6, 8, 1, 0]
    assert unary("div.s32 %r5, %r4, 2;", big).tolist() == [2**30 - 1, -(2**30), -3, 3, 0, 0]
    assert unary("rem.s32 %r5, %r4, 2;", big).tolist() == [1, 0, -1, 1, 0, -1]
    assert unary("mul.hi.u32 %r5, %r4, 0x10;", big).tolist() == [7, 8, 15, 0, 0, 15]
    assert unary("mul.hi.s32 %r5, %r4, 16;", big).tolist() == [7, -8, -1, 0, 0, -1]
    assert unary("mov.b32 %r6, 33; shl.b32 %r5, %r4, %r6;", big).tolist() == [0] * 6
    assert unary("mov.b32 %r6, 33; shr.s32 %r5, %r4, %r6;", big).tolist() == [0, -1, -1, 0, 0, -1]
    assert unary("shr.u32 %r5, %r4, 28;", big).tolist() == [7, 8, 15, 0, 0, 15]
    assert unary("bfe.s32 %r5, %r4, 0, 3;", big).tolist() == [-1, 0, 1, -1, 0, -1]
    assert unary("bfe.u32 %r5, %r4, 1, 3;", big).tolist() == [7, 0, 4, 3, 0, 7]
    assert unary("max.s32 %r5, %r4, 3;", big).tolist() == [2**31 - 1, 3, 3, 7, 3, 3]
    assert unary("min.u32 %r5, %r4, 3;", big).tolist() == [3, 3, 3, 3, 0, 3]
    assert unary("popc.b32 %r5, %r4;", big).tolist() == [31, 1, 30, 3, 0, 32]
    assert unary("prmt.b32 %r5, %r4, 0x04030201, 0x5410U;", [0x0D0C0B0A]).tolist() == [0x02010B0A]
    assert unary("prmt.b32 %r5, %r4, 0, 0x8880U;", [0x000000F0]).tolist() == [words([0xFFFFFFF0])[0]]
    assert unary("lop3.b32 %r5, %r4, 12, 10, 0x96;", [9]).tolist() == [9 ^ 12 ^ 10]
    assert unary("cvt.s64.s32 %rd4, %r4; shr.u64 %rd5, %rd4, 32; cvt.u32.u64 %r5, %rd5;", big).tolist() == [
        0,
        -1,
        -1,
        0,
        0,
        -1,
    ]
    assert unary("mul.wide.s32 %rd4, %r4, %r4; cvt.u32.u64 %r5, %rd4;", [3, -5]).tolist() == [9, 25]


def floats(instruction: str, values: object) -> np.ndarray:
    return unary(instruction, np.array(values, f32)).view(f32)


def test_floats() -> None:
    nan, inf = np.nan, np.inf
    assert floats("max.f32 %r5, %r4, 0f3F800000;", [nan, 2, -inf]).tolist() == [1, 2, 1]
    assert np.isnan(floats("max.NaN.f32 %r5, %r4, 0f3F800000;", [nan]))[0]
    assert np.signbit(floats("max.f32 %r5, %r4, 0f80000000;", [0.0, -0.0])).tolist() == [False, True]
    assert np.signbit(floats("min.f32 %r5, %r4, 0f00000000;", [0.0, -0.0])).tolist() == [False, True]
    # 1 + 2^-23 squared is 1 + 2^-22 + 2^-46: a product that is rounded first loses the last term.
    near = f32(1 + 2.0**-23)
    assert floats("fma.rn.f32 %r5, %r4, %r4, 0fBF800002;", [near]).tolist() == [2.0**-46]
    assert floats("mul.f32 %r5, %r4, %r4;", [near]).tolist() == [1 + 2.0**-22]
    assert floats("add.ftz.f32 %r5, %r4, 0f00000000;", [1e-40, -1e-40]).tolist() == [0, 0]
    assert floats("add.f32 %r5, %r4, 0f00000000;", [1e-40])[0] == f32(1e-40)
    assert floats("ex2.approx.f32 %r5, %r4;", [0, 3, -inf]).tolist() == [1, 8, 0]
    assert floats("lg2.approx.f32 %r5, %r4;", [1, 8, 0]).tolist() == [0, 3, -inf]
    assert unary("cvt.rni.s32.f32 %r5, %r4;", np.array([2.5, 3.5, -2.5, nan, 3e9], f32)).tolist() == [
        2,
        4,
        -2,
        0,
        2**31 - 1,
    ]
    assert unary("cvt.rzi.s32.f32 %r5, %r4;", np.array([2.9, -2.9], f32)).tolist() == [2, -2]
    assert floats("cvt.rn.f32.s32 %r6, %r4; mov.b32 %r5, %r6;", np.array([2**24 + 1], i32).view(f32)).tolist() == [
        2**24
    ]
    # Halfway cases of bfloat16 go to the even neighbour; the first operand is the upper half.
    half = np.array([1 + 2.0**-8, 1 + 3 * 2.0**-8], f32)
    assert unary("cvt.rn.bf16x2.f32 %r5, 0f40000000, %r4;", half).tolist() == [0x40003F80, 0x40003F82]
    assert unary("cvt.rn.f16.f32 %rs0, %r4; cvt.u32.u16 %r5, %rs0;", np.array([1 + 2.0**-11, 65520], f32)).tolist() == [
        0x3C00,
        0x7C00,
    ]
    assert unary("cvt.rna.tf32.f32 %r5, %r4;", np.array([1 + 2.0**-11], f32)).view(f32).tolist() == [1 + 2.0**-10]


def test_comparisons_with_nan() -> None:
    """The ordered ones are false where one side is NaN, the unordered ones true."""
    values = np.array([1, 2, np.nan], f32)
    expected = {"eq": [0, 1, 0], "ne": [1, 0, 0], "lt": [1, 0, 0], "ge": [0, 1, 0], "num": [1, 1, 0], "nan": [0, 0, 1]}
    expected |= {"equ": [0, 1, 1], "neu": [1, 0, 1], "ltu": [1, 0, 1], "geu": [0, 1, 1]}
    for how, truth in expected.items():
        body = f"setp.{how}.f32 %p1, %r4, 0f40000000; selp.b32 %r5, 1, 0, %p1;"
        assert unary(body, values).tolist() == truth, how


def test_blocks_of_inline_assembly_have_registers_of_their_own() -> None:
    """The same name twice, in two widths; a predicate among them."""
    first = "{ .reg .b64 t; .reg .pred q; mul.wide.u32 t, %r0, 3; setp.lt.u32 q, %r0, 9; mov.b64 {%r5, %r6}, t;\n"
    second = "@q add.u32 %r5, %r5, 100; }\n{\n.reg .b32 t;\nmov.b32 t, 1; add.u32 %r5, %r5, t;\n}\n"
    assert run(first + second + STORE, words([0])).tolist() == [3 * t + (101 if t < 9 else 1) for t in range(64)]


def test_predicates_branches_and_loops_by_thread() -> None:
    """Threads that go different ways meet again: each adds up its own number of terms."""
    body = (
        """
	mov.b32 %r5, 0; mov.b32 %r6, 0;
	setp.lt.u32 %p1, %r0, 10;
	@%p1 bra $small;
	mov.b32 %r5, 100;
	bra.uni $loop;
$small:
	mov.b32 %r5, 1000;
$loop:
	setp.ge.u32 %p2, %r6, %r0;
	@%p2 bra $done;
	add.s32 %r6, %r6, 1;
	add.s32 %r5, %r5, %r6;
	bra.uni $loop;
$done:
	@!%p1 add.s32 %r5, %r5, 7;
	bar.sync 0;
"""
        + STORE
    )
    assert run(body, words([0])).tolist() == [(1000 if t < 10 else 107) + t * (t + 1) // 2 for t in range(64)]


def test_shuffles_and_reductions() -> None:
    lane = np.arange(64) % 32
    base = np.arange(64) - lane
    cases = {
        "bfly.b32 %r5, %r0, 5, 31, -1": base + (lane ^ 5),
        "up.b32 %r5, %r0, 3, 0, -1": base + np.where(lane >= 3, lane - 3, lane),
        "down.b32 %r5, %r0, 3, 31, -1": base + np.where(lane < 29, lane + 3, lane),
        "idx.b32 %r5, %r0, 7, 31, -1": base + 7,
        "idx.b32 %r5, %r0, 1, 6175, -1": base + lane // 8 * 8 + 1,  # segments of 8
        "up.b32 %r5, %r0, 1, 6144, -1": base + np.where(lane % 8 >= 1, lane - 1, lane),
    }
    for text, expected in cases.items():
        assert run(f"shfl.sync.{text};" + STORE, words([0])).tolist() == expected.tolist(), text
    assert run("redux.sync.max.s32 %r5, %r0, -1;" + STORE, words([0])).tolist() == [31] * 32 + [63] * 32
    flag = "shfl.sync.down.b32 %r6|%p1, %r0, 3, 31, -1; selp.b32 %r5, 1, 0, %p1;"
    assert run(flag + STORE, words([0])).tolist() == (lane < 29).astype(int).tolist()


def test_pessimism_moves_approximations_by_no_more_than_documented(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.linspace(0.1, 9.9, 1001).astype(f32)
    exact = {name: getattr(arithmetic, name)(x) for name in ("ex2", "lg2", "rcp")}
    monkeypatch.setattr(arithmetic, "PESSIMISM", 1.0)
    for name, before in exact.items():
        after = getattr(arithmetic, name)(x)
        assert 0.3 < (after != before).mean() < 0.9, name
        assert (np.abs(after.astype(f64) - before) <= np.maximum(3 * np.spacing(np.abs(before)), 2.0**-21)).all(), name
    assert arithmetic.ex2(np.array([3.0], f32))[0] == 8
