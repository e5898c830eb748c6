"""Cases of the row sums of the derivative of cosine-Gumbel assignment for ahead-of-time compilation."""

from __future__ import annotations

from alt_kernels.triton.cosine_gumbel_assign_delta import _delta, _join_delta
from alt_kernels.triton.cosine_gumbel_assign_entities import STEM
from alt_kernels.triton.cosine_gumbel_assign_shared import SEED

from ..aot_case import AotCase
from .cosine_gumbel_assign_shared import NAMES, NOISES, aot_cases, signature


def _aot() -> list[AotCase]:
    cases = []
    for dtype in NAMES:
        for label, kind, depth in NOISES:
            cases += aot_cases(_delta, STEM, "delta", f"delta {label}", dtype, depth, NOISE=kind)
        rest = {"NOISE": SEED, "SPLIT": True}
        cases += aot_cases(_delta, STEM, "delta", "delta, split, seed", dtype, 512, **rest)
    join = {"BOUND": True, "R": 128}
    cases.append(AotCase("join delta fp16", _join_delta, signature(_join_delta, "fp16", join), join, 4, 1, False))
    return cases


AOT = _aot()
