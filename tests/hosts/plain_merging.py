"""Token merging from its equations, per image and in plain loops, for any vision transformer.

ToMe (Bolya et al. 2023), section 3: x' = x + g1 MSA(LN(x); s), merge, x'' + g2 MLP(LN(x'')). A merged token lies at
the size-weighted mean of the places of its patches, and attention rotates q and k there. A token of size 0 is padding:
no key, and no partner. It knows no host and shares no code with the package; autograd gives its gradients.
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
    rotation: frequencies of every head ``[H, P, D / 2]``. half: whether pair j of a head's channels is (j, j + D / 2),
    otherwise (2 j, 2 j + 1). after_out: of the attention's output ``[N, C]``.
    shared: heads of queries per head of keys and values.
    post_norm: the norms follow the sums: x' = LN(x + g1 MSA(x; s)), merge, LN(x'' + g2 MLP(x'')).
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
    rotation: Tensor | None = None
    half: bool = False
    after_out: Function | None = None
    shared: int = 1
    post_norm: bool = False


def linear(x: Tensor, weight_bias: tuple[Tensor, Tensor | None]) -> Tensor:
    weight, bias = weight_bias
    return x @ weight.T if bias is None else x @ weight.T + bias


def plain_layer_norm(weight: Tensor, bias: Tensor, eps: float) -> Function:
    def norm(x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * weight + bias

    return norm


def rotate(x: Tensor, places: Tensor, frequencies: Tensor, half: bool) -> Tensor:
    """Turns the pairs of channels of ``x`` ``[N, D]`` as complex numbers by the angles ``places @ frequencies``."""
    if not half:
        x = torch.cat([x[:, 0::2], x[:, 1::2]], 1)
    turned = torch.complex(*x.chunk(2, 1)) * torch.exp(1j * (places.to(frequencies) @ frequencies))
    return torch.cat([turned.real, turned.imag], 1)  # the order of channels does not matter in q k^T, nor in a cosine


def groups_of(metric: Tensor, r: int, protected: int = 1, size: Sequence[float] = ()) -> list[list[int]]:
    """The tokens of every output row: even positions may move, odd ones receive, the first ``protected`` stay."""
    if r == 0:
        return [[i] for i in range(len(metric))]  # a block that merges nothing does not reorder either
    metric = metric.detach() / metric.detach().norm(dim=1, keepdim=True)
    free = range(protected, len(metric))
    a, b = [i for i in free if i % 2 == 0], [i for i in free if i % 2 == 1]
    # Sorted as (score, first of a, first of b), the latter two negated: the highest comes first.

    def score(i: int, j: int) -> float:
        return -math.inf if size and size[i] * size[j] == 0 else float(metric[i] @ metric[j])

    best = [max((score(i, j), -i, -j) for j in b) for i in a]
    moves = {-i: -j for _, i, j in sorted(best, reverse=True)[:r]}
    rows = [[i] for i in range(protected)] + [[i] for i in a if i not in moves]
    return rows + [[j] + [i for i in a if moves.get(i) == j] for j in b]


def run_block(
    block: PlainBlock, x: Tensor, size: list[float], r: int, protected: int, places: Tensor | None, metric: str
) -> tuple[Tensor, list[float], Tensor | None, list[list[int]]]:
    """One block on one image's tokens ``[N, C]``: tokens, sizes, places and the input rows of each output row."""
    normed = x if block.post_norm else block.norm_1(x)
    q_heads = linear(normed, block.query).chunk(block.heads, 1)
    k_heads, v_heads = (linear(normed, part).chunk(block.heads // block.shared, 1) for part in (block.key, block.value))
    log_size = torch.tensor([math.log(s) if s else -math.inf for s in size], dtype=x.dtype)
    outputs, keys = [], []
    for head, q in enumerate(q_heads):
        k, v = k_heads[head // block.shared], v_heads[head // block.shared]
        q = q if block.query_norm is None else block.query_norm(q)
        k = k if block.key_norm is None else block.key_norm(k)
        compared = k
        if block.rotation is not None:
            q, k = (rotate(part, places, block.rotation[head], block.half) for part in (q, k))
            compared = k if metric == "rotated" else compared
        outputs.append((q @ k.T * q.shape[1] ** -0.5 + log_size).softmax(1) @ v)
        keys.append(compared)
    y = torch.cat(outputs, 1)
    y = linear(y if block.before_out is None else block.before_out(y, normed), block.out)
    y = y if block.after_out is None else block.after_out(y)
    x = x + block.gains[0] * y
    x = block.norm_1(x) if block.post_norm else x
    rows = groups_of(torch.stack(keys).mean(0), r, protected, size)

    def mean(values: Tensor) -> Tensor:
        return torch.stack([_weighted_mean([(size[i], values[i]) for i in row]) for row in rows])

    x, places = mean(x), None if places is None else mean(places)
    size = [sum(size[i] for i in row) for row in rows]
    if block.post_norm:
        return block.norm_2(x + block.gains[1] * block.mlp(x)), size, places, rows
    return x + block.gains[1] * block.mlp(block.norm_2(x)), size, places, rows


def _weighted_mean(pairs: list[tuple[float, Tensor]]) -> Tensor:
    if len(pairs) == 1:
        return pairs[0][1]  # also of padding, which keeps its value
    total = sum(size for size, _ in pairs)
    return sum(size * value for size, value in pairs) / total if total else 0 * pairs[0][1]


def run_blocks(
    blocks: Sequence[PlainBlock],
    images: Tensor,
    removed: Sequence[int],
    protected: int,
    places: Tensor | None = None,
    sizes: Sequence[Sequence[float]] | None = None,
    metric: str = "keys",
) -> tuple[list[Tensor], list[list[float]]]:
    """Embedded images ``[B, N, C]`` through all blocks, with places ``[N, P]`` and sizes ``[B][N]`` (None: 1 each).

    Returns the tokens ``[B, N, C]`` after each block, every input token with the value of the token that it merged
    into, and the sizes of each image after the last block.
    """
    grids: list[list[Tensor]] = [[] for _ in blocks]
    last_sizes = []
    for image, x in enumerate(images):
        size = [1.0] * len(x) if sizes is None else list(sizes[image])
        source, place = list(range(len(x))), places
        for i, (block, r) in enumerate(zip(blocks, removed, strict=True)):
            x, size, place, rows = run_block(block, x, size, r, protected, place, metric)
            source = [next(j for j, row in enumerate(rows) if p in row) for p in source]
            grids[i].append(x[source])
        last_sizes.append(size)
    return [torch.stack(grid) for grid in grids], last_sizes
