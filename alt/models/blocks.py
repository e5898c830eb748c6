"""Building blocks of the layers beside the tower: a two-layer MLP, and attention followed by an MLP."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["AttentionBlock", "Mlp", "quick_gelu"]


def quick_gelu(x: Tensor) -> Tensor:
    """Returns ``x sigmoid(1.702 x)``, the activation of OpenAI's CLIP and of X-CLIP's own layers."""
    return x * torch.sigmoid(1.702 * x)


class Mlp(nn.Module):
    """Two-layer MLP ``x -> W2 f(W1 x + b1) + b2`` with 2 d h + d + h parameters.

    Layers are named by their effect on the width: ``up`` then ``down`` if h > d, ``down`` then ``up`` in a bottleneck.
    Weights start from a truncated normal distribution with standard deviation 0.02, biases at zero.

    Args:
        width: d. hidden: h; None: 4 d.
        zero_output: W2 starts at zero, so a residual ``x + mlp(x)`` starts as the identity.
        activation: f.
    """

    def __init__(
        self,
        width: int,
        hidden: int | None = None,
        *,
        zero_output: bool = False,
        activation: Callable[[Tensor], Tensor] = F.gelu,
    ) -> None:
        super().__init__()
        self.activation = activation
        hidden = 4 * width if hidden is None else hidden
        self.is_bottleneck = hidden < width
        first, second = nn.Linear(width, hidden), nn.Linear(hidden, width)
        if self.is_bottleneck:
            self.down, self.up = first, second
        else:
            self.up, self.down = first, second
        for layer in (first, second):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        if zero_output:
            nn.init.zeros_(second.weight)

    def forward(self, x: Tensor) -> Tensor:
        first, second = (self.down, self.up) if self.is_bottleneck else (self.up, self.down)
        return second(self.activation(first(x)))


class AttentionBlock(nn.Module):
    r"""Multi-head attention, then a feed-forward part of hidden width 4 d; both pre-norm and residual.

    .. math:: q' = q + \mathrm{MHA}(\mathrm{LN}(q), kv), \qquad q' + \mathrm{FFN}(\mathrm{LN}(q'))

    It has 12 d^2 + 13 d parameters.

    Args:
        width: d. heads: of the attention.
        zero_output: the output projection and the last layer start at zero, so a new block is the identity.
    """

    def __init__(self, width: int, heads: int, *, zero_output: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ffn_norm = nn.LayerNorm(width)
        self.add_feed_forward(width, zero_output)
        nn.init.trunc_normal_(self.attention.in_proj_weight, std=0.02)
        nn.init.trunc_normal_(self.attention.out_proj.weight, std=0.02)
        if zero_output:
            nn.init.zeros_(self.attention.out_proj.weight)

    def add_feed_forward(self, width: int, zero_output: bool) -> None:
        """Adds the layers of :meth:`feed_forward`; a subclass may give them other names."""
        self.ffn = Mlp(width, zero_output=zero_output)

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.ffn(x)

    def forward(self, q: Tensor, keys: Tensor | None = None) -> Tensor:
        """Maps queries ``[B, n, d]`` and keys ``[B, m, d]`` to ``[B, n, d]``; without keys it is self-attention."""
        normed = self.norm(q)
        keys = normed if keys is None else keys
        q = q + self.attention(normed, keys, keys, need_weights=False)[0]
        return q + self.feed_forward(self.ffn_norm(q))
