"""Matching of one ViT-B/16 layer: the plan from the keys' mean over heads."""

from __future__ import annotations

from typing import Any

import gates
import rivals
import shapes
import torch

from alt_kernels import bipartite_soft_matching


def test_matching(contest: Any, compiled_rival: Any, device: torch.device) -> None:
    shape = shapes.layer(device)
    generator = torch.Generator(device).manual_seed(1)
    metric = torch.randn(
        shape.batch, shape.tokens, shape.head_dim, generator=generator, dtype=shape.dtype, device=device
    )
    even, odd = metric[:, 0::2].contiguous(), metric[:, 1::2].contiguous().transpose(1, 2)
    compiled = compiled_rival("plain torch, compiled", rivals.match)
    contest(
        "bipartite_soft_matching",
        lambda: bipartite_soft_matching(metric, shape.r),
        rivals={"plain torch": lambda: rivals.match(metric, shape.r)}
        | {name: (lambda f=f: f(metric, shape.r)) for name, f in compiled.items()},
        floors={"its matmul alone": lambda: even @ odd},
        gates=gates.matching_gate(metric, shape.r),
        bound=gates.roundings(4, shape.dtype),
        why_bound="a cosine is off by a few roundings of the dtype; cosines are at most 1",
        cost=shape.matching_cost(),
        shape=f"B={shape.batch} N={shape.tokens} D={shape.head_dim} r={shape.r} {shapes.name(shape.dtype)}",
        targets={"plain torch": 1.5},
    )
