"""Kernels for token merging: matching, merging, proportional attention and cosine-Gumbel assignment.

They take and return tensors only. The models that use them are in the package ``alt`` of the same distribution.
"""

from __future__ import annotations

from . import library
from .library import Backend, backends
from .ops.bipartite_soft_matching import bipartite_soft_matching, bipartite_soft_matching_from_keys
from .ops.cosine_gumbel_assign import cosine_gumbel_assign
from .ops.merge_layer_norm import merge_layer_norm
from .ops.proportional_attention import proportional_attention
from .ops.unmerge import source_map, unmerge
from .ops.weighted_merge import weighted_merge
from .types import Assignment, Impl, Matching, Merged, MergedNorm

__version__ = "0.1.0"

__all__ = [
    "Assignment",
    "Backend",
    "Impl",
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
