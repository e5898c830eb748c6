"""The two counts of a forward pass and their parts."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["COMPONENTS", "CONVENTION", "CostReport"]

COMPONENTS = (
    "patch_embedding",
    "attention_projections",
    "attention",
    "matching",
    "mlp",
    "pooling",
    "alignment",
    "adapter",
    "head",
    "other",
)
"""Keys of ``CostReport.by_component``, in order:

the patch convolution; q, k, v and output projections; q k^T and A v of the blocks; token matching; the two MLP layers;
pooling and the projection to the joint space (of all tokens in a video model); similarities of tokens and entities;
modules between the tower and the head, and adapters inside the tower; scores of the classes; anything else. An image
tower has nothing under alignment, adapter and head."""

CONVENTION = ("dense_merging", "dense_assignment", "layer_norm")
"""Keys of ``CostReport.by_convention``: operations that the paper's convention adds to ours."""


class CostReport(NamedTuple):
    """Multiply-accumulates (MACs), which the literature prints as "GFLOPs" (1 GFLOP there = 1e9 MACs).

    native: int, the cost of this implementation for all frames of all views.
    paper_convention: int, ``native`` plus the sum of ``by_convention``. This is our reading of how the ALT paper (arXiv
        2311.15619) counted; it explains all nine of its GFLOPs within 0.75 %. Our operations cost less.
    by_component: dict of int over ``COMPONENTS``; sums exactly to ``native``.
    by_convention: dict of int over ``CONVENTION``.

        - dense_merging: ``n^2 w + n (n - r) w`` per frame and merging block of n tokens of width w: a dense n x n
          similarity at full width, and merging by a dense (n - r) x n matrix product.
        - dense_assignment: ``n K d`` for n aligned tokens and K entities of width d: the one-hot matrix times the
          corpus. Here it is a gather.
        - layer_norm: 5 per element that a LayerNorm with weights writes (4 without), as fvcore counts.
    """

    native: int
    paper_convention: int
    by_component: dict[str, int]
    by_convention: dict[str, int]

    @property
    def native_g(self) -> float:
        """Returns ``native`` in units of 1e9 MACs, the "GFLOPs" of the literature."""
        return self.native / 1e9

    @property
    def paper_convention_g(self) -> float:
        """Returns ``paper_convention`` in units of 1e9 MACs."""
        return self.paper_convention / 1e9
