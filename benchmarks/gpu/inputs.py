"""Inputs of the GPU benchmarks: shapes, and sets of random tensors that the cache does not keep.

Shapes on a GPU are those for which the floors were computed: the first layer of ViT-B/16 at 224 pixels, batch 256,
and one assignment row for each token that r = 8 leaves. A dry run has tiny shapes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import rivals
import shapes
import torch
from torch import Tensor

import alt_kernels as ak

from . import clock
from .session import Session

TAU = 0.05
CACHES = 4  # what goes through between two uses of a set of inputs, in sizes of the L2 cache
MOST_SETS = 1024


def layer(session: Session) -> shapes.Tokens:
    if session.dry:
        return shapes.Tokens(2, 17, 2, 16, 3, torch.float32)
    return shapes.Tokens(256, 197, 12, 64, 8, torch.bfloat16)


def corpus(session: Session, large: bool) -> shapes.Corpus:
    if session.dry:
        return shapes.Corpus(24, 40 if large else 19, 32, torch.float32)
    return shapes.Corpus(256 * 101, 100_000 if large else 913, 512, torch.bfloat16)


def sets(cache: int, read: int) -> int:
    """Returns the number of input sets that calls use in turn, so that none is still in the L2 cache at its next use.

    Args:
        cache: bytes of the cache. read: bytes that a call reads of a set.
    """
    return min(max(2, -(-CACHES * cache // max(read, 1))), MOST_SETS)


def sets_of(session: Session, *sizes: int, itemsize: int = 2) -> int:
    """Returns :func:`sets` for tensors of these sizes."""
    return 2 if session.dry else sets(clock.cache_bytes(session.device), math.prod(sizes) * itemsize)


def random(session: Session, seed: int, count: int, *sizes: int, dtype: torch.dtype | None = None) -> list[Tensor]:
    """A tensor of normal numbers for each of ``count`` sets, never zeros: a GPU computes faster on zeros."""
    generator = torch.Generator(session.device).manual_seed(seed)
    return [
        torch.randn(*sizes, generator=generator, device=session.device).to(dtype or layer(session).dtype)
        for _ in range(count)
    ]


def packed(session: Session, seed: int, count: int, shape: shapes.Tokens) -> list[tuple[Tensor, Tensor, Tensor]]:
    """q, k, v ``[B, H, N, D]`` as views of a packed projection."""
    found = random(session, seed, count, shape.batch, shape.tokens, 3, shape.heads, shape.head_dim)
    return [tuple(t.permute(2, 0, 3, 1, 4).unbind(0)) for t in found]


class Merging(NamedTuple):
    shape: shapes.Tokens
    x: list[Tensor]
    y: list[Tensor]
    size: list[Tensor]
    plans: list[ak.Matching]
    pairs: list[rivals.Pairs]
    weight: Tensor
    bias: Tensor

    def column(self, i: int) -> Tensor:
        return self.size[i][..., None].to(self.x[i].dtype)


def merging(session: Session, batch: int | None = None) -> Merging:
    """Sizes above 1, as from the second layer on; one plan in both spellings."""
    shape = layer(session)
    shape = shape._replace(batch=batch or shape.batch)
    rows = (shape.batch, shape.tokens, shape.channels)
    count = sets_of(session, *rows)
    x, y = (random(session, seed, count, *rows) for seed in (3, 4))
    metric = random(session, 5, count, shape.batch, shape.tokens, shape.head_dim, dtype=torch.float32)
    sizes = token_sizes(session, count, shape)
    weight, bias = random(session, 7, 2, shape.channels)
    plans = [ak.bipartite_soft_matching(m, shape.r) for m in metric]
    pairs = [_pairs(plan, shape) for plan in plans]
    return Merging(shape, x, y, sizes, plans, pairs, weight, bias)


def token_sizes(session: Session, count: int, shape: shapes.Tokens) -> list[Tensor]:
    generator = torch.Generator(session.device).manual_seed(6)
    return [
        torch.randint(1, 6, (shape.batch, shape.tokens), generator=generator, device=session.device).float()
        for _ in range(count)
    ]


def _pairs(plan: ak.Matching, shape: shapes.Tokens) -> rivals.Pairs:
    """The rivals' spelling of the same plan."""
    first = (shape.tokens + 1) // 2 - shape.r
    even = plan.output_row[:, 0::2].long()
    merged = even >= first
    order = merged.long().argsort(dim=-1, stable=True)
    kept, source = order[:, :first], order[:, first:]
    return rivals.Pairs(kept, source, even.gather(1, source) - first)
