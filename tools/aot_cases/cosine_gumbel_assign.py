"""Cases of cosine-Gumbel assignment for ahead-of-time compilation."""

from __future__ import annotations

from alt_kernels.triton.cosine_gumbel_assign import _assign, _join
from alt_kernels.triton.cosine_gumbel_assign_shared import NONE, SEED, TENSOR

from ..aot_case import AotCase
from .cosine_gumbel_assign_shared import NAMES, aot_cases, signature


def _aot() -> list[AotCase]:
    stem = "cosine_gumbel_assign"
    cases = [
        case
        for dtype in NAMES
        for depth in (512, 768)
        for mode in ("hard", "soft")
        for noise, kind in (("seed", SEED), ("tensor", TENSOR), ("no noise", NONE))
        if depth == 512 or kind == SEED
        for case in aot_cases(
            _assign, stem, mode, f"{mode} {noise}", dtype, depth, NOISE=kind, SOFT=mode == "soft", SPLIT=False
        )
    ]
    for soft in (False, True):
        join = {"D": 512, "SOFT": soft, "R": 32, "BC": 128}
        types = signature(_join, "bf16", join, index_part_ptr="*i64", out_ptr="*bf16")
        cases.append(AotCase(f"join {'soft' if soft else 'hard'} d=512 bf16", _join, types, join, 4, 1, False))
    return cases


AOT = _aot()
