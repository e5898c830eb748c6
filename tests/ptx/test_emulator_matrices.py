"""The emulator's matrix instructions, with fragments and layouts filled by the documentation's formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from .arithmetic import f32, i32, u32
from .memory import HazardError
from .programs import STORE, run, words
from .warpgroup import addresses


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
