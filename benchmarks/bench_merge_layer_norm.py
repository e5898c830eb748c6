"""Merging of one ViT-B/16 layer, fused with the residual sum and the LayerNorm."""

from __future__ import annotations

from typing import Any

import gates
import pytest
import rivals
import torch
import torch.nn.functional as F
from merge_case import Case, make_case
from torch import Tensor

from alt_kernels import merge_layer_norm


@pytest.fixture
def case(device: torch.device) -> Case:
    return make_case(device)


def test_merge_layer_norm(contest: Any, compiled_rival: Any, case: Case) -> None:
    want = merge_layer_norm(
        case.x.double(),
        case.residual.double(),
        case.matching,
        case.size,
        case.weight.double(),
        case.bias.double(),
        impl="reference",
    ).normed
    arguments = (case.x, case.residual, case.size_column, case.pairs, case.weight, case.bias)
    compiled = compiled_rival("plain torch, compiled", rivals.merge_layer_norm)

    def without_merging() -> Tensor:
        return F.layer_norm(case.x + case.residual, case.x.shape[-1:], case.weight, case.bias)

    contest(
        "merge_layer_norm",
        lambda: merge_layer_norm(case.x, case.residual, case.matching, case.size, case.weight, case.bias),
        rivals={"plain torch": lambda: rivals.merge_layer_norm(*arguments)}
        | {name: (lambda f=f: f(*arguments)) for name, f in compiled.items()},
        floors={"x + residual and LayerNorm, nothing merged": without_merging},
        gates=lambda result: gates.error(result[1], want),
        bound=gates.roundings(32, case.shape.dtype),
        why_bound="the merge's roundings, then mean, variance and scaling of 768 channels",
        cost=case.shape.merge_layer_norm_cost(),
        shape=case.shape.label,
    )
