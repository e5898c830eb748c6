"""Short PTX programs: every thread reads a word and writes one."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .arithmetic import i32, u32
from .launch import execute
from .translate import translate

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
