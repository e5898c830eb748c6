"""Merging of one ViT-B/16 layer: the weighted mean alone, and fused with the residual sum and the LayerNorm."""

from __future__ import annotations

from typing import Any, NamedTuple

import gates
import pytest
import rivals
import shapes
import torch
import torch.nn.functional as F
from torch import Tensor

from alt_kernels import Matching, bipartite_soft_matching, merge_layer_norm, weighted_merge


class Case(NamedTuple):
    """Tokens, the branch to add, sizes above 1 as from the second layer on, one plan in both spellings, LayerNorm."""

    shape: shapes.Tokens
    x: Tensor
    residual: Tensor
    size: Tensor
    size_column: Tensor
    matching: Matching
    pairs: rivals.Pairs
    weight: Tensor
    bias: Tensor


@pytest.fixture
def case(device: torch.device) -> Case:
    shape = shapes.layer(device)
    generator = torch.Generator(device).manual_seed(2)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator, device=device).to(shape.dtype)

    x, residual = (normal(shape.batch, shape.tokens, shape.channels) for _ in range(2))
    size = torch.randint(1, 6, (shape.batch, shape.tokens), generator=generator, device=device).float()
    # Scores in float32 whatever the dtype of the tokens, so that both spellings of the plan are one plan.
    metric = normal(shape.batch, shape.tokens, shape.head_dim).float()
    matching = bipartite_soft_matching(metric, shape.r)
    pairs = rivals.match(metric, shape.r)
    assert torch.equal(gates.rows_of_pairs(pairs, shape.tokens), matching.output_row.long())
    column = size[..., None].to(shape.dtype)
    return Case(shape, x, residual, size, column, matching, pairs, normal(shape.channels), normal(shape.channels))


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
