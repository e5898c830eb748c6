"""The shapes the benchmarks run, and what they cost in operations and bytes.

CPU shapes are those of one small video batch through ViT-B/16 at 224 pixels: 8 frames of 197 tokens, 768 channels
(12 heads of 64). The assignment has one row per token left at r = 8 and a corpus of 913 entities. On a GPU the same
benchmarks run a batch that fills it.

Operations are 2 x multiply-accumulates of the matrix products. Bytes are what an implementation that keeps every
intermediate on chip has to read and write: inputs once, outputs once.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch


class Cost(NamedTuple):
    """Operations (2 x MAC) and bytes of one call."""

    flops: int
    bytes: int


class Tokens(NamedTuple):
    """Tokens of a ViT layer: B images, N tokens (one of them the class token), H heads of D channels, r merged."""

    batch: int
    tokens: int
    heads: int
    head_dim: int
    r: int
    dtype: torch.dtype

    @property
    def channels(self) -> int:
        return self.heads * self.head_dim

    @property
    def label(self) -> str:
        return f"B={self.batch} N={self.tokens} C={self.channels} H={self.heads} r={self.r} {name(self.dtype)}"

    @property
    def sources(self) -> tuple[int, int]:
        """Unprotected tokens at even and at odd positions."""
        return (self.tokens + 1) // 2 - 1, self.tokens // 2

    def matching_cost(self) -> Cost:
        even, odd = self.sources
        plan = 4 * (2 * self.tokens + self.tokens - self.r + 1)
        read = self.tokens * self.head_dim * self.dtype.itemsize
        return Cost(2 * self.batch * even * odd * self.head_dim, self.batch * (read + plan))

    def merge_cost(self) -> Cost:
        """One multiply and one add per channel of a merged row, and a division; two sizes, a plan."""
        rows = self.tokens - self.r
        moved = (self.tokens + rows) * self.channels * self.dtype.itemsize
        plan = 4 * (self.tokens + rows + 1)
        sizes = 4 * (self.tokens + rows)
        return Cost(self.batch * self.channels * 6 * self.r, self.batch * (moved + plan + sizes))

    def merge_layer_norm_cost(self) -> Cost:
        """x and the residual in, the merged tokens and their LayerNorm out: 8 operations per element."""
        rows = self.tokens - self.r
        moved = 2 * (self.tokens + rows) * self.channels * self.dtype.itemsize
        return Cost(8 * self.batch * rows * self.channels, self.batch * (moved + 4 * (3 * self.tokens)))

    def attention_cost(self) -> Cost:
        flops = 4 * self.batch * self.heads * self.tokens**2 * self.head_dim
        moved = 4 * self.batch * self.tokens * self.channels * self.dtype.itemsize
        return Cost(flops, moved + 4 * self.batch * self.tokens)


class Corpus(NamedTuple):
    """M rows assigned to K entities of d channels."""

    rows: int
    entities: int
    channels: int
    dtype: torch.dtype

    @property
    def label(self) -> str:
        return f"M={self.rows} K={self.entities} d={self.channels} {name(self.dtype)}"

    def cost(self, *, backward: bool) -> Cost:
        """Forward: the similarities; the hard output is a gather. Backward to x: similarities again, two products."""
        product = 2 * self.rows * self.entities * self.channels
        row, corpus = self.rows * self.channels, self.entities * self.channels
        read = (2 * row + corpus) * self.dtype.itemsize + 12 * self.rows
        return Cost(product * (4 if backward else 1), read * (2 if backward else 1))

    def inputs_and_outputs(self, *, entities_gradient: bool = False) -> int:
        """Bytes of x, the entities, the output, index and normaliser, and the gradients in and out."""
        row, corpus = self.rows * self.channels, self.entities * self.channels
        tensors = 4 * row + corpus * (2 if entities_gradient else 1)
        return tensors * self.dtype.itemsize + 12 * self.rows


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def layer(device: torch.device) -> Tokens:
    """The first merging layer of ViT-B/16."""
    if device.type == "cuda":
        return Tokens(256, 197, 12, 64, 8, torch.bfloat16)
    return Tokens(8, 197, 12, 64, 8, torch.float32)


def corpus(device: torch.device) -> Corpus:
    """Tokens left after ViT-B/16 at r = 8 (101 each), assigned to 913 entities."""
    if device.type == "cuda":
        return Corpus(256 * 101, 913, 512, torch.bfloat16)
    return Corpus(8 * 101, 913, 512, torch.float32)


LARGE_CORPUS = Corpus(808, 100_000, 512, torch.float32)


def vit_tokens(depth: int, tokens: int, r: int) -> list[int]:
    """Tokens entering each block, and after the last, when every block loses r (at most half the unprotected)."""
    counts = [tokens]
    for _ in range(depth):
        counts.append(counts[-1] - min(r, (counts[-1] - 1) // 2))
    return counts


def vit_macs(frames: int, *, tokens: int, width: int, depth: int, patch: int, r: int) -> int:
    """Multiply-accumulates of a ViT image tower whose blocks merge between attention and MLP.

    Per block with n tokens in and n' out: projections 4 n w^2, attention 2 n^2 w, MLP 8 n' w^2, matching (n/2)^2 64;
    once the patch embedding (N - 1) 3 p^2 w.
    """
    counts = vit_tokens(depth, tokens, r)
    total = (tokens - 1) * 3 * patch**2 * width
    for n, left in pairwise(counts):
        total += 4 * n * width**2 + 2 * n**2 * width + 8 * left * width**2
        total += (n // 2) ** 2 * 64 if left < n else 0
    return frames * total
