"""Cases of the derivative of cosine-Gumbel assignment to the entities for ahead-of-time compilation."""

from __future__ import annotations

from alt_kernels.triton.cosine_gumbel_assign_entities import STEM, _entity_values, _finish, _grad_entities
from alt_kernels.triton.cosine_gumbel_assign_shared import SEED

from ..aot_case import AotCase
from .cosine_gumbel_assign_shared import NAMES, NOISES, aot_cases, signature


def _aot() -> list[AotCase]:
    cases = []
    for dtype in NAMES:
        for label, kind, depth in NOISES:
            cases += aot_cases(_grad_entities, STEM, "entities", f"entities {label}", dtype, depth, NOISE=kind)
            rest = {"NOISE": kind, "HARD": False, "SPARSE": False}
            cases += aot_cases(_entity_values, STEM, "values", f"values soft {label}", dtype, depth, **rest)
        for label, sparse in (("hard", False), ("hard, sparse", True)):
            rest = {"NOISE": SEED, "HARD": True, "SPARSE": sparse}
            cases += aot_cases(_entity_values, STEM, "values", f"values {label}", dtype, 512, **rest)
    finish = {"D": 512, "R": 16, "BC": 128}
    types = signature(_finish, "bf16", finish, row_ptr="*bf16", out_ptr="*bf16")
    cases.append(AotCase("finish d=512 bf16", _finish, types, finish, 4, 1, False))
    return cases


AOT = _aot()
