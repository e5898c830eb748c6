"""Inputs of the merging benchmarks: one ViT-B/16 layer and its plan."""

from __future__ import annotations

from typing import NamedTuple

import gates
import rivals
import shapes
import torch
from torch import Tensor

from alt_kernels import Matching, bipartite_soft_matching


class Case(NamedTuple):
    """Tokens, the branch to add, sizes above 1 as from the second layer on, one plan in both forms, and LayerNorm."""

    shape: shapes.Tokens
    x: Tensor
    residual: Tensor
    size: Tensor
    size_column: Tensor
    matching: Matching
    pairs: rivals.Pairs
    weight: Tensor
    bias: Tensor


def make_case(device: torch.device) -> Case:
    """Returns the inputs of one ViT-B/16 layer on ``device``."""
    shape = shapes.layer(device)
    generator = torch.Generator(device).manual_seed(2)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator, device=device).to(shape.dtype)

    x, residual = (normal(shape.batch, shape.tokens, shape.channels) for _ in range(2))
    size = torch.randint(1, 6, (shape.batch, shape.tokens), generator=generator, device=device).float()
    # Scores are float32 for any dtype of the tokens, so that both forms describe one plan.
    metric = normal(shape.batch, shape.tokens, shape.head_dim).float()
    matching = bipartite_soft_matching(metric, shape.r)
    pairs = rivals.match(metric, shape.r)
    assert torch.equal(gates.rows_of_pairs(pairs, shape.tokens), matching.output_row.long())
    column = size[..., None].to(shape.dtype)
    return Case(shape, x, residual, size, column, matching, pairs, normal(shape.channels), normal(shape.channels))
