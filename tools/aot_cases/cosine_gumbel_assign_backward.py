"""Cases of the derivative of cosine-Gumbel assignment for ahead-of-time compilation."""

from __future__ import annotations

from alt_kernels.triton.cosine_gumbel_assign_backward import _finish_rows, _grad_x
from alt_kernels.triton.cosine_gumbel_assign_entities import STEM
from alt_kernels.triton.cosine_gumbel_assign_shared import SEED

from ..aot_case import AotCase
from .cosine_gumbel_assign_shared import NAMES, NOISES, aot_cases, signature


def _aot() -> list[AotCase]:
    cases = []
    for dtype in NAMES:
        for label, kind, depth in NOISES:
            cases += aot_cases(
                _grad_x, STEM, "rows", f"rows {label}", dtype, depth, {"part_ptr": f"*{dtype}"}, NOISE=kind
            )
        rest = {"NOISE": SEED, "SPLIT": True}
        cases += aot_cases(_grad_x, STEM, "rows", "rows, split, seed", dtype, 512, {"part_ptr": "*fp32"}, **rest)
    finish = {"D": 512, "R": 16, "BC": 128}
    types = signature(_finish_rows, "bf16", finish, out_ptr="*bf16")
    cases.append(AotCase("finish rows d=512 bf16", _finish_rows, types, finish, 4, 1, False))
    return cases


AOT = _aot()
