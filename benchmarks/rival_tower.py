"""Token merging inside an image tower as commonly written: the plain-torch operations of `rivals`.

The tower may be of any host of `alt.hosts`, whose modules and parameters it uses, one call each. Only attention and
the merge after it differ from the unpatched tower: query-key product, log size, softmax and product with the values
run one after the other. It supports the needs of the benchmarks: at most one protected token, the first; pre-norm
blocks; no rotary positions.
"""

from __future__ import annotations

from collections.abc import Iterator

import rivals
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alt.hosts import BlockParts, HostAttention, find_tower


def forward(tower: nn.Module, images: Tensor, r: int, *, masked: bool = False) -> Tensor:
    """Returns embeddings ``[B, d]`` of ``images`` ``[B, 3, H, W]``, with r tokens (at most half) merged per block.

    ``masked``: attention by PyTorch's fused kernel with the log sizes as its mask, instead of step by step.
    """
    x, size = _run(tower, images, r, masked)
    host, tower = find_tower(tower)
    return host.pool(tower, x, None if size is None else size[..., 0])


def tokens(tower: nn.Module, images: Tensor, r: int, *, masked: bool = False) -> Tensor:
    """Returns the tokens after the last block, ``[B, n, w]``, with gradient."""
    return _run(tower, images, r, masked)[0]


def _run(tower: nn.Module, images: Tensor, r: int, masked: bool) -> tuple[Tensor, Tensor | None]:
    return run(tower, embed(tower, images), r, masked)


def embed(tower: nn.Module, images: Tensor) -> Tensor:
    """Returns the tokens before the first block, ``[B, N, w]``."""
    host, tower = find_tower(tower)
    return host.embed(tower, images).x


def blocks(tower: nn.Module) -> Iterator[tuple[BlockParts, nn.Module]]:
    """Yields the parts of every block, and the block."""
    host, tower = find_tower(tower)
    for i, block in enumerate(host.blocks(tower)):
        yield host.block_parts(block, tower, i), block


def run(tower: nn.Module, x: Tensor, r: int, masked: bool = False) -> tuple[Tensor, Tensor | None]:
    """Returns tokens ``[B, n, w]`` after all blocks and their sizes ``[B, n, 1]``, None if nothing was merged."""
    host, tower = find_tower(tower)
    protected = host.num_protected(tower)
    size: Tensor | None = None
    for parts, _ in blocks(tower):
        mixed, keys = attend(parts.attention, parts.norm_1(x), size, masked)
        x = x + parts.after_attention(mixed)
        removed = min(r, (x.shape[1] - protected) // 2)
        if removed:
            size = torch.ones_like(x[..., :1]) if size is None else size
            with torch.no_grad():  # the choice of pairs has no gradient
                pairs = rivals.match(keys.mean(dim=1), removed, protected)
            x, size = rivals.merge(x, size, pairs)
        x = x + parts.feed_forward(parts.norm_2(x))
    return x, size


def attend(attention: HostAttention, x: Tensor, size: Tensor | None, masked: bool = False) -> tuple[Tensor, Tensor]:
    """Returns attention's output ``[B, N, C]`` and the keys ``[B, H, N, D]``, whose mean over heads is the metric."""
    q, k, v = attention.project(x, None)[:3]
    if masked:
        out = (
            F.scaled_dot_product_attention(q, k, v) if size is None else rivals.attention_broadcast_mask(q, k, v, size)
        )
    elif size is None:  # every size is 1 and its logarithm 0
        out = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1) @ v
    else:
        out = rivals.attention(q, k, v, size)
    return attention.join_heads(out, x), k
