"""The emulator on PTX written by hand, with results known from NVIDIA's documentation, and what it must refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from . import arithmetic
from .arithmetic import f32, f64, i32, u32
from .instructions import UnknownInstruction
from .launch import execute
from .machine import BarrierError
from .memory import AccessError, HazardError
from .translate import translate
from .warpgroup import addresses

HEAD = """
.version 8.0
.target sm_80
.address_size 64
.extern .shared .align 16 .b8 smem[];
.visible .entry kernel(.param .u64 kernel_param_0, .param .u64 kernel_param_1)
.reqntid {threads}
{{
	.reg .pred 	%p<9>;
	.reg .b16 	%rs<9>;
	.reg .b32 	%r<40>;
	.reg .b64 	%rd<9>;
	ld.param.b64 	%rd0, [kernel_param_0];
	ld.param.b64 	%rd1, [kernel_param_1];
	mov.u32 	%r0, %tid.x;
	mov.b32 	%r1, smem;
	mad.wide.u32 	%rd2, %r0, 4, %rd0;
	mad.wide.u32 	%rd3, %r0, 4, %rd1;
	shl.b32 	%r2, %r0, 2;
	add.s32 	%r3, %r1, %r2;
"""
LOAD = "ld.global.b32 %r4, [%rd2];\n"
STORE = "st.global.b32 [%rd3], %r5;\n"


def run(
    body: str, given: Tensor, threads: int = 64, shared: int = 1024, programs: int = 1, out: Tensor | None = None
) -> Tensor:
    """A program's threads read ``given`` through %rd0 and write 32 bits each through %rd1."""
    out = torch.full((programs * threads,), -1, dtype=torch.int32) if out is None else out
    parameters = [np.array([t.data_ptr()], np.uint64) for t in (given, out)]
    code = translate(HEAD.format(threads=threads) + body + "ret;\n}\n")
    execute(code, parameters, [("given", given), ("out", out)], (programs, 1, 1), shared)
    return out


def words(values: object) -> Tensor:
    """32-bit numbers of any kind as int32."""
    given = np.ascontiguousarray(values)
    given = (given & 0xFFFFFFFF).astype(u32) if given.dtype == np.int64 else given
    return torch.from_numpy(given.view(i32).copy())


def unary(instruction: str, values: object) -> np.ndarray:
    """%r5 = f(%r4) on up to 64 values."""
    given = words(values)
    padded = torch.zeros(64, dtype=torch.int32)
    padded[: len(given)] = given
    return run(LOAD + instruction + STORE, padded).numpy()[: len(given)]


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


EXCHANGE = "st.shared.b32 [%r3], %r0; {} xor.b32 %r6, %r3, {}; ld.shared.b32 %r5, [%r6];" + STORE


def test_shared_memory_races() -> None:
    """A neighbour's value needs a barrier if it is of another warp, and bar.warp.sync within a warp."""
    neighbour = [t ^ 32 for t in range(64)]
    assert run(EXCHANGE.format("bar.sync 0;", 128), words([0])).tolist() == neighbour
    for sync in ("", "bar.warp.sync -1;"):
        with pytest.raises(HazardError, match="read of what another warp wrote"):
            run(EXCHANGE.format(sync, 128), words([0]))
    assert run(EXCHANGE.format("bar.warp.sync -1;", 4), words([0])).tolist() == [t ^ 1 for t in range(64)]
    with pytest.raises(HazardError, match=r"another thread of the warp wrote without a bar\.warp\.sync"):
        run(EXCHANGE.format("", 4), words([0]))
    with pytest.raises(HazardError, match="write over what another warp read"):
        run(EXCHANGE.format("bar.sync 0;", 128) + "st.shared.b32 [%r3], %r5;", words([0]))
    everyone = "st.shared.b32 [%r3], %r0; bar.sync 0; ld.shared.b32 %r5, [%r1]; {} "
    everyone += "setp.eq.s32 %p1, %r0, 33; @%p1 st.shared.b32 [%r1], %r0;"
    run(everyone.format("bar.sync 0;"), words([0]))
    with pytest.raises(HazardError, match="write over what another warp read"):
        run(everyone.format(""), words([0]))
    with pytest.raises(HazardError, match="several values to one place"):
        run("st.shared.b32 [%r1], %r0;", words([0]))
    with pytest.raises(HazardError, match="write over what another warp wrote"):
        run("st.shared.b32 [%r3], %r0; xor.b32 %r6, %r3, 128; st.shared.b32 [%r6], %r0;", words([0]))


def test_a_race_is_kept_apart_by_program_and_by_byte() -> None:
    bytes_ = "add.s32 %r6, %r1, %r0; cvt.u16.u32 %rs0, %r0; st.shared.b8 [%r6], %rs0; "
    bytes_ += "ld.shared.b8 %rs1, [%r6]; cvt.u32.u16 %r5, %rs1;"
    assert run(bytes_ + STORE, words([0])).tolist() == list(range(64))
    place = "mov.u32 %r7, %ctaid.x; mad.lo.s32 %r8, %r7, 64, %r0; mad.wide.u32 %rd3, %r8, 4, %rd1;"
    place += "shl.b32 %r0, %r8, 1;"
    assert run(place + EXCHANGE.format("bar.sync 0;", 128), words([0]), programs=3).tolist() == [
        2 * (t ^ 32) for t in range(192)
    ]


def test_what_shared_memory_holds_at_first_is_nan() -> None:
    assert np.isnan(run("ld.shared.b32 %r5, [%r3];" + STORE, words([0])).numpy().view(f32)).all()


COPY = """
	shl.b32 %r6, %r0, 4; add.s32 %r6, %r1, %r6; mul.wide.u32 %rd4, %r0, 16; add.s64 %rd4, %rd0, %rd4;
	setp.lt.u32 %p1, %r0, 60; selp.b32 %r7, 16, 0, %p1;
	cp.async.cg.shared.global [ %r6 + 0 ], [ %rd4 + 0 ], 0x10, %r7;
	cp.async.commit_group;
"""


def test_copies_arrive_at_the_wait_and_fill_with_zeros() -> None:
    given = torch.arange(1, 241, dtype=torch.int32)  # 60 threads' worth: the others copy nothing
    read = "ld.shared.b32 %r5, [%r6+4];" + STORE
    assert run(COPY + "cp.async.wait_group 0;" + read, given).tolist() == [4 * t + 2 for t in range(60)] + [0] * 4
    for early in ("", "cp.async.wait_group 1;"):
        with pytest.raises(HazardError, match="destination of a copy under way"):
            run(COPY + early + read + "cp.async.wait_group 0;", given)
    with pytest.raises(HazardError, match="nothing waits for"):
        run(COPY, given)
    neighbour = "xor.b32 %r6, %r6, 512;" + read
    expected = [4 * (t ^ 32) + 2 if t ^ 32 < 60 else 0 for t in range(64)]
    assert run(COPY + "cp.async.wait_group 0; bar.sync 0;" + neighbour, given).tolist() == expected
    with pytest.raises(HazardError, match="read of what another warp wrote"):
        run(COPY + "cp.async.wait_group 0;" + neighbour, given)
    with pytest.raises(HazardError, match="copy over what another warp read"):
        run(COPY + "cp.async.wait_group 0; bar.sync 0;" + neighbour + COPY + "cp.async.wait_group 0;", given)


def test_bad_accesses() -> None:
    given = torch.zeros(64, dtype=torch.int32)
    with pytest.raises(AccessError, match=r"out of bounds: 4 bytes at .*, thread 63 of program \(0, 0, 0\)"):
        run("ld.global.b32 %r5, [%rd2+4];" + STORE, given)
    with pytest.raises(AccessError, match="misaligned: access of 4 bytes"):
        run("ld.global.b32 %r5, [%rd2+2];" + STORE, given)
    with pytest.raises(AccessError, match="misaligned: access of 16 bytes"):
        run("ld.global.v4.b32 {%r5, %r6, %r7, %r8}, [%rd2];" + STORE, given)
    with pytest.raises(AccessError, match="out of bounds in shared memory"):
        run("st.shared.b32 [%r3+772], %r0;", given)
    with pytest.raises(AccessError, match="out of bounds in shared memory"):
        run("st.shared.b32 [%r2], %r0;", given)  # a place without the base
    with pytest.raises(AccessError, match="misaligned in shared memory"):
        run("st.shared.v2.b32 [%r3], {%r0, %r0};", given)
    holes = torch.zeros(64, 2, dtype=torch.int32)[:, 0]
    with pytest.raises(AccessError, match="out of bounds"):
        run("ld.global.b32 %r5, [%rd2];" + STORE, holes)  # the gaps of a view are nobody's
    assert run("shl.b64 %rd4, %rd2, 1; sub.s64 %rd4, %rd4, %rd0; ld.global.b32 %r5, [%rd4];" + STORE, holes).sum() == 0
    run("setp.lt.u32 %p1, %r0, 63; mov.b32 %r5, 0; @%p1 ld.global.b32 %r5, [%rd2+4];" + STORE, given)


def test_results_are_written_once_and_not_read() -> None:
    given = torch.zeros(64, dtype=torch.int32)
    with pytest.raises(HazardError, match="two threads store to one place"):
        run("st.global.b32 [%rd1], %r0;", given)
    with pytest.raises(HazardError, match="store to what this launch has stored"):
        run("mov.b32 %r5, 0;" + STORE + STORE, given)
    with pytest.raises(HazardError, match="two threads store to one place"):
        run("mov.b32 %r5, 0;" + STORE, given, programs=2)  # both programs write the same 64
    with pytest.raises(HazardError, match="load of what this launch stores"):
        run("mov.b32 %r5, 0;" + STORE + "ld.global.b32 %r6, [%rd3];", given)


def test_barriers_and_unknown_instructions() -> None:
    with pytest.raises(BarrierError, match="only some threads of the program"):
        run("setp.lt.u32 %p1, %r0, 32; @%p1 bra $end; bar.sync 0;\n$end:\n", words([0]))
    with pytest.raises(BarrierError, match="only some threads reach"):
        run("setp.lt.u32 %p1, %r0, 16; @%p1 bra $end; shfl.sync.bfly.b32 %r5, %r0, 1, 31, -1;\n$end:\n", words([0]))
    for line in ("sin.approx.f32 %r5, %r0;", "atom.global.add.u32 %r5, [%rd1], 1;", "add.sat.s32 %r5, %r0, 1;"):
        with pytest.raises(UnknownInstruction):
            run(line, words([0]))


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


def product(instruction: str, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """One mma by one warp, each register loaded from where the documentation's tables put it."""
    given = torch.from_numpy(np.concatenate([x.reshape(32, -1).view(u32) for x in (a, b, c)], 1).view(i32).copy())
    count = given.shape[1]
    loads = "".join(f"ld.global.b32 %r{10 + i}, [%rd4+{4 * i}];" for i in range(count))
    names = [f"%r{10 + i}" for i in range(count)]
    split = [x.reshape(32, -1).view(u32).shape[1] for x in (a, b)]
    parts = names[: split[0]], names[split[0] : sum(split)], names[sum(split) :]
    ends = [f"{{{', '.join(part)}}}" for part in parts]
    out = torch.zeros(32, 4, dtype=torch.int32)
    run(
        f"mad.wide.u32 %rd4, %r0, {4 * count}, %rd0; {loads}"
        f"{instruction} {{%r30, %r31, %r32, %r33}}, {', '.join(ends)};"
        "mad.wide.u32 %rd5, %r0, 16, %rd1; st.global.v4.b32 [%rd5], {%r30, %r31, %r32, %r33};",
        given, threads=32, out=out,
    )  # fmt: skip
    return out.numpy().view(f32)


@pytest.mark.parametrize("depth", [16, 8])
def test_matrix_product_of_halves(depth: int) -> None:
    """Whole numbers, so that every order of the sum is exact; fragments are filled by the documentation's formulas."""
    rng = np.random.default_rng(0)
    left, right, more = (rng.integers(-8, 9, shape) for shape in ((16, depth), (depth, 8), (16, 8)))
    a, b, c = np.zeros((32, depth // 2), np.float16), np.zeros((32, depth // 4), np.float16), np.zeros((32, 4), f32)
    for lane in range(32):
        group, place = lane >> 2, lane % 4
        for i in range(depth // 2):
            row = group if i in (0, 1, 4, 5) else group + 8
            a[lane, i] = left[row, place * 2 + (i & 1) + (8 if i >= 4 else 0)]
        for i in range(depth // 4):
            b[lane, i] = right[place * 2 + (i & 1) + (8 if i >= 2 else 0), group]
        for i in range(4):
            c[lane, i] = more[group + (8 if i >= 2 else 0), place * 2 + (i & 1)]
    truth = left @ right + more
    found = product(f"mma.sync.aligned.m16n8k{depth}.row.col.f32.f16.f16.f32", a, b, c)
    bits = [(x.astype(f32).view(u32) >> 16).astype(np.uint16) for x in (a, b)]
    again = product(f"mma.sync.aligned.m16n8k{depth}.row.col.f32.bf16.bf16.f32", *bits, c)
    for lane in range(32):
        for i in range(4):
            expected = truth[(lane >> 2) + (8 if i >= 2 else 0), lane % 4 * 2 + (i & 1)]
            assert found[lane, i] == again[lane, i] == expected


def test_matrix_product_of_tf32() -> None:
    """The lowest 13 bits of an operand are not read."""
    rng = np.random.default_rng(0)
    left, right, more = (rng.integers(-8, 9, shape) for shape in ((16, 8), (8, 8), (16, 8)))
    a, b, c = np.zeros((32, 4), f32), np.zeros((32, 2), f32), np.zeros((32, 4), f32)
    for lane in range(32):
        group, place = lane >> 2, lane % 4
        for i in range(4):
            a[lane, i] = left[group + 8 * (i in (1, 3)), place + 4 * (i in (2, 3))]
            c[lane, i] = more[group + (8 if i >= 2 else 0), place * 2 + (i & 1)]
        b[lane] = right[place, group], right[place + 4, group]
    noisy = (a.view(u32) | u32(0x1FFF)).view(f32)
    found = product("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32", noisy, b, c)
    truth = left @ right + more
    for lane in range(32):
        for i in range(4):
            assert found[lane, i] == truth[(lane >> 2) + (8 if i >= 2 else 0), lane % 4 * 2 + (i & 1)]


@pytest.mark.parametrize("trans", [False, True])
def test_ldmatrix(trans: bool) -> None:
    """Four 8 x 8 matrices of numbered halves: lane l gets row l / 4, columns 2 (l % 4) and the next, of each."""
    given = torch.arange(256, dtype=torch.int16)
    fill = "shl.b32 %r6, %r0, 4; add.s32 %r6, %r1, %r6; mul.wide.u32 %rd4, %r0, 16; add.s64 %rd4, %rd0, %rd4;"
    fill += "ld.global.v4.b32 {%r10, %r11, %r12, %r13}, [%rd4];"
    fill += "st.shared.v4.b32 [%r6], {%r10, %r11, %r12, %r13}; bar.sync 0;"
    load = f"ldmatrix.sync.aligned.m8n8.x4{'.trans' if trans else ''}.shared.b16 {{%r20, %r21, %r22, %r23}}, [%r6];"
    store = "add.s64 %rd5, %rd4, %rd1; sub.s64 %rd5, %rd5, %rd0; st.global.v4.b32 [%rd5], {%r20, %r21, %r22, %r23};"
    out = run(fill + load + store, given, threads=32, out=torch.zeros(256, dtype=torch.int16)).reshape(32, 4, 2)
    for lane in range(32):
        for i in range(4):
            row, column = lane // 4, 2 * (lane % 4)
            places = [(column, row), (column + 1, row)] if trans else [(row, column), (row, column + 1)]
            assert out[lane, i].tolist() == [64 * i + 8 * r + c for r, c in places]


def test_stmatrix_is_the_inverse_of_ldmatrix() -> None:
    for trans in ("", ".trans"):
        fill = "shl.b32 %r6, %r0, 4; add.s32 %r6, %r1, %r6; mul.wide.u32 %rd4, %r0, 16; add.s64 %rd4, %rd1, %rd4;"
        fill += "st.shared.v4.b32 [%r6], {%r0, %r6, %r1, %r0}; bar.sync 0; ld.shared.b32 %r10, [%r3]; bar.sync 0;"
        load = f"ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{%r20, %r21, %r22, %r23}}, [%r6]; bar.sync 0;"
        load += f"stmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 [%r6], {{%r20, %r21, %r22, %r23}}; bar.sync 0;"
        load += "ld.shared.b32 %r11, [%r3]; sub.s32 %r5, %r10, %r11;"
        assert not run(fill + load + STORE, words([0]), threads=32).any()


@pytest.mark.parametrize(("mode", "width", "period"), [(1, 128, 1), (2, 64, 2), (3, 32, 4)])
def test_swizzled_matrices(mode: int, width: int, period: int) -> None:
    """In 8 rows of ``width`` bytes the 16 bytes c of row r are where c ^ (r / period) was."""
    descriptor = np.array([2048 >> 4 | 4096 >> 4 << 16 | 8192 >> 4 << 32 | mode << 62], np.uint64)
    at = addresses(descriptor, 24, width // 2, 2, across=False)[0]
    across = addresses(descriptor, width, 16, 2, across=True)[0]
    for row in range(24):
        for k in range(width // 2):
            chunk, rest = divmod(2 * k, 16)
            inside = row % 8 * width + (chunk ^ row % 8 // period) * 16 + rest
            assert at[row, k] == 2048 + row // 8 * 8192 + inside
            if row < 16:
                assert across[k, row] == at[row, k]
                assert across[k + width // 2, row] == at[row, k] + 4096


def test_warpgroup_product_fences_and_waits() -> None:
    """64 x 8 x 16 of halves, A in registers, B with rows of 32 bytes: B is the identity beside zeros."""
    b = "setp.lt.u32 %p1, %r0, 64; mov.b32 %r6, 0; shr.u32 %r7, %r0, 3; and.b32 %r8, %r0, 7; shl.b32 %r9, %r8, 1;"
    # Words of row n: word w holds columns 2 w and 2 w + 1; a one where 2 w or 2 w + 1 is n. No row has the fourth
    # address bit of the swizzle set before row 4, from where on the halves of a row change places.
    b += "shr.u32 %r10, %r7, 2; shl.b32 %r10, %r10, 2; xor.b32 %r11, %r8, %r10; shl.b32 %r9, %r11, 1;"
    b += "setp.eq.u32 %p2, %r9, %r7; selp.b32 %r6, 0x3C00, 0, %p2; add.u32 %r9, %r9, 1; setp.eq.u32 %p3, %r9, %r7;"
    b += "selp.b32 %r6, 0x3C000000, %r6, %p3; @%p1 st.shared.b32 [%r3], %r6;"
    fence, wait = "fence.proxy.async.shared::cta; bar.sync 0;", "wgmma.wait_group.sync.aligned 0;"
    a = "cvt.rn.f32.s32 %r12, %r0; cvt.rn.f16x2.f32 %r12, %r12, 0f40000000; mov.b32 %r13, 0; mov.b32 %r16, 0;"
    a += "mov.b32 %r17, 0; mov.b32 %r18, 0; mov.b32 %r19, 0; bfe.u32 %r14, %r1, 4, 14; cvt.u64.u32 %rd5, %r14;"
    a += "or.b64 %rd5, %rd5, 0xC000001000010000; wgmma.fence.sync.aligned;"
    a += "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%r16, %r17, %r18, %r19},"
    a += "{%r12, %r13, %r13, %r13}, %rd5, 1, 1, 1, 0; wgmma.commit_group.sync.aligned;"
    end = "mov.b32 %r5, %r17;" + STORE
    found = run(b + fence + a + wait + end, words([0]), threads=128).numpy().view(f32)
    assert found.tolist() == list(range(128))  # column 2 place + 1 of A: the upper half
    with pytest.raises(HazardError, match=r"without a fence\.proxy\.async"):
        run(b + "bar.sync 0;" + a + wait + end, words([0]), threads=128)
    with pytest.raises(HazardError, match="another warp wrote without a barrier"):
        run(b + "fence.proxy.async.shared::cta;" + a + wait + end, words([0]), threads=128)
    with pytest.raises(HazardError, match="what a matrix product under way reads"):
        run(b + fence + a + "bar.sync 0; @%p1 st.shared.b32 [%r3], %r6;" + wait + end, words([0]), threads=128)
    with pytest.raises(HazardError, match="nothing waits for"):
        run(b + fence + a + end, words([0]), threads=128)


def test_pessimism_moves_approximations_by_no_more_than_documented(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.linspace(0.1, 9.9, 1001).astype(f32)
    exact = {name: getattr(arithmetic, name)(x) for name in ("ex2", "lg2", "rcp")}
    monkeypatch.setattr(arithmetic, "PESSIMISM", 1.0)
    for name, before in exact.items():
        after = getattr(arithmetic, name)(x)
        assert 0.3 < (after != before).mean() < 0.9, name
        assert (np.abs(after.astype(f64) - before) <= np.maximum(3 * np.spacing(np.abs(before)), 2.0**-21)).all(), name
    assert arithmetic.ex2(np.array([3.0], f32))[0] == 8
