"""Weighted merge of one ViT-B/16 layer."""

from __future__ import annotations

from typing import Any

import gates
import pytest
import rivals
import torch
from merge_case import Case, make_case

from alt_kernels import weighted_merge


@pytest.fixture
def case(device: torch.device) -> Case:
    return make_case(device)


def test_merge(contest: Any, compiled_rival: Any, case: Case) -> None:
    copy = torch.empty_like(case.x)
    want = weighted_merge(case.x.double(), case.matching, case.size, impl="reference").x
    arguments = (case.x, case.size_column, case.pairs)
    compiled = compiled_rival("plain torch, compiled", rivals.merge)
    contest(
        "weighted_merge",
        lambda: weighted_merge(case.x, case.matching, case.size),
        rivals={
            "plain torch": lambda: rivals.merge(*arguments),
            "plain torch, index_add": lambda: rivals.merge_index_add(*arguments),
        }
        | {name: (lambda f=f: f(*arguments)) for name, f in compiled.items()},
        floors={"copy of x": lambda: copy.copy_(case.x)},
        gates=lambda result: gates.error(result[0], want),
        bound=gates.roundings(16, case.shape.dtype),
        why_bound="a group's products, sums and division, one rounding each",
        cost=case.shape.merge_cost(),
        shape=case.shape.label,
        targets={"plain torch": 20.0},
    )
