"""Rivals: the same operations as separate PyTorch calls, as commonly run today.

Token merging follows the equations of "Token Merging: Your ViT But Faster" (arXiv 2210.09461, section 3), and
proportional attention its equation 1. The assignment follows the ALT paper's equations (arXiv 2311.15619) with
`torch.nn.functional.gumbel_softmax`. Nothing is tuned and nothing is handicapped: if two spellings are common, both
run. The correctness gate compares each with the float64 definition before it is timed.

Shapes: tokens ``[B, N, C]``, sizes ``[B, N, 1]`` (as such code keeps them), heads ``[B, H, N, D]``.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Pairs(NamedTuple):
    """Positions of the even tokens that stay ``[B, A - r]`` and that merge ``[B, r]``, and their odd partners."""

    kept: Tensor
    source: Tensor
    target: Tensor


def match(metric: Tensor, r: int, num_protected: int = 1) -> Pairs:
    """Pairs every even token with the odd token of highest cosine and picks the r best pairs.

    ``num_protected``: 1 if token 0, a class token, must not merge; 0 if there is none.
    """
    unit = metric / metric.norm(dim=-1, keepdim=True)
    cosine = unit[:, 0::2] @ unit[:, 1::2].transpose(1, 2)
    cosine[:, :num_protected] = float("-inf")
    best, partner = cosine.max(dim=-1)
    ranked = best.argsort(dim=-1, descending=True)
    source = ranked[:, :r]
    kept = ranked[:, r:].sort(dim=-1).values
    return Pairs(kept, source, partner.gather(1, source))


def _sum_groups(x: Tensor, pairs: Pairs) -> Tensor:
    """Returns kept even tokens, then odd tokens plus their sources, by gathers and one scatter_reduce."""
    even, odd = x[:, 0::2], x[:, 1::2]
    kept, source, target = (index[..., None].expand(-1, -1, x.shape[-1]) for index in pairs)
    summed = odd.scatter_reduce(1, target, even.gather(1, source), reduce="sum")
    return torch.cat([even.gather(1, kept), summed], dim=1)


def merge(x: Tensor, size: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Returns the size-weighted mean of every group, and the new sizes."""
    total = _sum_groups(size, pairs)
    return _sum_groups(x * size, pairs) / total, total


def merge_index_add(x: Tensor, size: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Does the same with one `index_add` over flattened rows, faster on a CPU than PyTorch's scatter_reduce."""
    batch, odd_count = x.shape[0], x.shape[1] // 2
    rows = (pairs.target + odd_count * torch.arange(batch, device=x.device)[:, None]).flatten()
    image = torch.arange(batch, device=x.device)[:, None]

    def groups(values: Tensor) -> Tensor:
        even, odd = values[:, 0::2], values[:, 1::2]
        moved = even[image, pairs.source].flatten(0, 1)
        summed = odd.flatten(0, 1).index_add(0, rows, moved).view_as(odd)
        return torch.cat([even[image, pairs.kept], summed], dim=1)

    total = groups(size)
    return groups(x * size) / total, total


def merge_layer_norm(
    x: Tensor, residual: Tensor, size: Tensor, pairs: Pairs, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs residual sum, merge and LayerNorm as three steps."""
    merged, total = merge(x + residual, size, pairs)
    return merged, F.layer_norm(merged, merged.shape[-1:], weight, bias), total


def attention(q: Tensor, k: Tensor, v: Tensor, size: Tensor) -> Tensor:
    """Computes softmax(q k^T / sqrt(D) + log size) v step by step."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    scores = scores + size.log()[:, None, None, :, 0]
    return scores.softmax(dim=-1) @ v


def attention_dense_mask(q: Tensor, k: Tensor, v: Tensor, size: Tensor) -> Tensor:
    """SDPA with the bias written out as a mask ``[B, H, N, N]``."""
    mask = size.log()[:, None, None, :, 0].to(q.dtype).expand(*q.shape[:3], k.shape[2]).contiguous()
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def attention_broadcast_mask(q: Tensor, k: Tensor, v: Tensor, size: Tensor) -> Tensor:
    """SDPA with the bias as a mask ``[B, 1, 1, N]`` broadcast by PyTorch."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=size.log()[:, None, None, :, 0].to(q.dtype))


def assign(x: Tensor, entities: Tensor, tau: float) -> Tensor:
    """Cosine similarities, hard Gumbel softmax (temperature inside: the noise is not divided by it), times entities."""
    logits = F.normalize(x, dim=-1) @ F.normalize(entities, dim=-1).T / tau
    return F.gumbel_softmax(logits, tau=1.0, hard=True) @ entities


def assign_gradient(x: Tensor, entities: Tensor, tau: float, grad: Tensor) -> Tensor:
    """Gradient of :func:`assign` to x by autograd."""
    return torch.autograd.grad(assign(x, entities, tau), x, grad)[0]


def noise_of_gumbel_softmax(seed: int, rows: int, columns: int, like: Tensor) -> Tensor:
    """The noise that `F.gumbel_softmax` draws right after ``torch.manual_seed(seed)``."""
    torch.manual_seed(seed)
    return -torch.empty(rows, columns, dtype=like.dtype, device=like.device).exponential_().log()


def why_no_compile(device: torch.device) -> str | None:
    """Why `torch.compile` cannot run here, or None."""
    if device.type == "cpu" and not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        return "torch.compile needs a C++ compiler"
    return None


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.compile` for one shape, as one graph.

    Random numbers are inductor's own: on a CPU they are drawn faster than the ones of eager PyTorch, and a rival gets
    the faster spelling. They cannot be had outside, so the gate checks their law instead of their values.
    """
    return torch.compile(function, dynamic=False, fullgraph=True)


def compiled_with_eager_noise(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same, drawing the noise of eager PyTorch: for checking by value, slower and never timed."""
    import torch._inductor.config as inductor

    graph = compiled(lambda *arguments: function(*arguments))  # a code object of its own, so a graph of its own

    def run(*arguments: Any) -> Any:
        with inductor.patch(fallback_random=True):
            return graph(*arguments)

    return run
