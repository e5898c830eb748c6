"""Kernels for token merging: matching, merging, proportional attention and cosine-Gumbel assignment.

They take and return tensors only. The models that use them are in the package ``alt`` of the same distribution.
"""

from __future__ import annotations

from . import library
from .library import Backend, backends
from .ops.bipartite_matching import bipartite_soft_matching, bipartite_soft_matching_from_keys
from .ops.gumbel_assignment import cosine_gumbel_assign
from .ops.proportional_attention import proportional_attention
from .ops.weighted_merge import merge_layer_norm, source_map, unmerge, weighted_merge
from .types import Assignment, Matching, Merged, MergedNorm

__version__ = "0.1.0"

__all__ = [
    "Assignment",
    "Backend",
    "Matching",
    "Merged",
    "MergedNorm",
    "backends",
    "bipartite_soft_matching",
    "bipartite_soft_matching_from_keys",
    "cosine_gumbel_assign",
    "merge_layer_norm",
    "proportional_attention",
    "source_map",
    "unmerge",
    "weighted_merge",
]

# The imports above define every op, and the compiled library adds its kernels to them.
library.initialise()
