"""Loops and the cycles of their pipes, read from an assembler's listing written by hand."""

from __future__ import annotations

import pytest

from tools import sass

LISTING = """
_kernel:
.text._kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   FFMA R2, R2, R3, R4 ;
.L_x_1:
        /*0020*/                   MUFU.EX2 R5, R2 ;
        /*0030*/                   HGMMA.64x128x16.F32.BF16 R88, gdesc[UR56], RZ, !UPT ;
        /*0040*/              @!P2 BRA `(.L_x_1) ;
        /*0050*/               @P1 LDS.128 R8, [R1+0x10] ;
        /*0060*/                   ISETP.GE.AND P0, PT, R0, R5, PT ;
        /*0070*/               @P0 BRA `(.L_x_2) ;
        /*0080*/              @!P0 BRA `(.L_x_0) ;
.L_x_2:
        /*0090*/                   EXIT ;
.L_x_3:
        /*00a0*/                   BRA `(.L_x_3);
"""


def test_loops_nest_and_each_instruction_counts_once() -> None:
    whole, outer, inner = sass.loops(LISTING)
    assert [loop.depth for loop in (whole, outer, inner)] == [0, 1, 2]
    assert (outer.start, outer.end) == (0x10, 0x80)
    assert (inner.start, inner.end) == (0x20, 0x40)
    # LDC, EXIT and the branch to itself; FFMA, LDS, ISETP, two branches; MUFU, HGMMA, a branch.
    assert [loop.instructions for loop in (whole, outer, inner)] == [3, 5, 3]
    assert [loop.matrix for loop in (whole, outer, inner)] == [0, 0, 1]


def test_cycles_by_pipe() -> None:
    _, outer, inner = sass.loops(LISTING)
    assert outer.cycles == {"fma": 1, "lsu": 16, "alu": 2, "control": 2, "issue": 5}
    # 64 x 128 x 16 products, 512 a cycle on each of four tensor cores.
    assert inner.cycles == {"xu": 8, "tensor": 64, "control": 1, "issue": 3}
    assert inner.bound == ("tensor", 64)


@pytest.mark.parametrize(
    ("opcode", "pipe", "cycles"),
    [
        ("HGMMA.64x64x16.F32.BF16", "tensor", 32),
        ("HGMMA.64x64x8.F32.TF32", "tensor", 32),
        ("HMMA.16816.F32.BF16", "tensor", 4),
        ("HMMA.1688.F32.TF32", "tensor", 4),
        ("MUFU.LG2", "xu", 8),
        ("SHFL.BFLY", "lsu", 4),
        ("LDG.E.128", "lsu", 16),
        ("STS.64", "lsu", 8),
        ("LDGSTS.E.BYPASS.128", "lsu", 16),
        ("IMAD.WIDE.U32", "fma", 2),
        ("HFMA2.MMA", "fma", 1),
        ("FMNMX", "alu", 2),
        ("F2FP.BF16.F32.PACK_AB", "alu", 2),
        ("R2UR", "uniform", 2),
        ("BAR.SYNC.DEFER_BLOCKING", "control", 1),
        ("WARPGROUP.DEPBAR.LE", "control", 1),
    ],
)
def test_where_an_instruction_goes(opcode: str, pipe: str, cycles: float) -> None:
    assert sass.cost(opcode) == (pipe, cycles)


def test_a_report_says_what_bounds_each_loop() -> None:
    whole, outer, inner = sass.report(LISTING)
    assert whole.startswith("outside loops: 3 instructions")
    assert outer.startswith("  loop 0x10..0x80: 5 instructions, 0 of them matrix; bound by lsu, 16 cycles")
    assert inner.startswith("    loop 0x20..0x40: 3 instructions, 1 of them matrix; bound by tensor, 64 cycles")


def test_an_empty_listing_has_no_loops() -> None:
    assert sass.loops("") == []
