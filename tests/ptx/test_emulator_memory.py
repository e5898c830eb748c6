"""The emulator's memory: shared memory and its races, copies, barriers, and accesses that it must refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from .arithmetic import f32
from .instructions import UnknownInstruction
from .machine import BarrierError
from .memory import AccessError, HazardError
from .programs import STORE, run, words

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
