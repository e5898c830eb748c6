"""Token merging from its equations, per image and in plain loops, for any pre-norm vision transformer.

ToMe (Bolya et al. 2023), section 3: x' = x + g1 MSA(LN(x); s), merge, x'' + g2 MLP(LN(x'')). It knows no host and
shares no code with the package; autograd gives its gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]


@dataclass
class PlainBlock:
    """Weights of a block. query, key, value, out: (weight, bias or None); gains: factors of the two branches.

    query_norm, key_norm: of one head's ``[N, D]``. before_out: of the joined heads ``[N, C]``.
    """

    norm_1: Function
    query: tuple[Tensor, Tensor | None]
    key: tuple[Tensor, Tensor | None]
    value: tuple[Tensor, Tensor | None]
    out: tuple[Tensor, Tensor | None]
    heads: int
    norm_2: Function
    mlp: Function
    gains: tuple[Tensor | float, Tensor | float] = (1.0, 1.0)
    query_norm: Function | None = None
    key_norm: Function | None = None
    before_out: Callable[[Tensor, Tensor], Tensor] | None = None


def linear(x: Tensor, weight_bias: tuple[Tensor, Tensor | None]) -> Tensor:
    weight, bias = weight_bias
    return x @ weight.T if bias is None else x @ weight.T + bias


def plain_layer_norm(weight: Tensor, bias: Tensor, eps: float) -> Function:
    def norm(x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * weight + bias

    return norm


def groups_of(metric: Tensor, r: int, protected: int = 1) -> list[list[int]]:
    """The tokens of every output row: even positions may move, odd ones receive, the first ``protected`` stay."""
    if r == 0:
        return [[i] for i in range(len(metric))]  # a block that merges nothing does not reorder either
    metric = metric.detach() / metric.detach().norm(dim=1, keepdim=True)
    free = range(protected, len(metric))
    a, b = [i for i in free if i % 2 == 0], [i for i in free if i % 2 == 1]
    # Sorted as (score, first of a, first of b), the latter two negated: the highest comes first.
    best = [max((float(metric[i] @ metric[j]), -i, -j) for j in b) for i in a]
    moves = {-i: -j for _, i, j in sorted(best, reverse=True)[:r]}
    rows = [[i] for i in range(protected)] + [[i] for i in a if i not in moves]
    return rows + [[j] + [i for i in a if moves.get(i) == j] for j in b]


def run_block(
    block: PlainBlock, x: Tensor, size: list[float], r: int, protected: int
) -> tuple[Tensor, list[float], list[list[int]]]:
    """One block on one image's tokens ``[N, C]``: tokens, sizes and the input rows of each output row."""
    normed = block.norm_1(x)
    parts = [linear(normed, projection).chunk(block.heads, 1) for projection in (block.query, block.key, block.value)]
    log_size = torch.tensor([math.log(s) for s in size], dtype=x.dtype)
    outputs, keys = [], []
    for q, k, v in zip(*parts, strict=True):
        q = q if block.query_norm is None else block.query_norm(q)
        k = k if block.key_norm is None else block.key_norm(k)
        outputs.append((q @ k.T * q.shape[1] ** -0.5 + log_size).softmax(1) @ v)
        keys.append(k)
    y = torch.cat(outputs, 1)
    y = linear(y if block.before_out is None else block.before_out(y, normed), block.out)
    x = x + block.gains[0] * y
    rows = groups_of(torch.stack(keys).mean(0), r, protected)
    x = torch.stack([sum(size[i] * x[i] for i in row) / sum(size[i] for i in row) for row in rows])
    size = [sum(size[i] for i in row) for row in rows]
    return x + block.gains[1] * block.mlp(block.norm_2(x)), size, rows


def run_blocks(
    blocks: Sequence[PlainBlock], images: Tensor, removed: Sequence[int], protected: int
) -> tuple[list[Tensor], list[list[float]]]:
    """Embedded images ``[B, N, C]`` through all blocks.

    Returns the tokens ``[B, N, C]`` after each block, every input token with the value of the token that it merged
    into, and the sizes of each image after the last block.
    """
    grids: list[list[Tensor]] = [[] for _ in blocks]
    sizes = []
    for x in images:
        size, place = [1.0] * len(x), list(range(len(x)))
        for i, (block, r) in enumerate(zip(blocks, removed, strict=True)):
            x, size, rows = run_block(block, x, size, r, protected)
            place = [next(j for j, row in enumerate(rows) if p in row) for p in place]
            grids[i].append(x[place])
        sizes.append(size)
    return [torch.stack(grid) for grid in grids], sizes
