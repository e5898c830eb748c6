"""Cases of the derivative of cosine-Gumbel assignment for ahead-of-time compilation."""

from __future__ import annotations

from alt_kernels.triton.cosine_gumbel_assign_backward import _grad_x
from alt_kernels.triton.cosine_gumbel_assign_entities import STEM
from alt_kernels.triton.cosine_gumbel_assign_shared import SEED

from ..aot_case import AotCase
from .cosine_gumbel_assign_shared import NAMES, NOISES, aot_cases


def _aot() -> list[AotCase]:
    cases = []
    for dtype in NAMES:
        for label, kind, depth in NOISES:
            cases += aot_cases(
                _grad_x, STEM, "rows", f"rows {label}", dtype, depth, {"part_ptr": f"*{dtype}"}, NOISE=kind
            )
        cases += aot_cases(_grad_x, STEM, "rows", "rows, split, seed", dtype, 512, {"part_ptr": "*fp32"}, NOISE=SEED)
    return cases


AOT = _aot()
