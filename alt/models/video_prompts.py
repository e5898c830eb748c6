"""Video-specific prompting: the text of each class looks at the patches of the video."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import Mlp, quick_gelu

__all__ = ["VideoPrompts"]


class _Block(nn.Module):
    """Attention from texts to patches (q, k, v without bias), then an FFN with QuickGELU; both residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.ffn_norm = nn.LayerNorm(width)
        self.ffn = Mlp(width, activation=quick_gelu)
        for layer in (self.query, self.key, self.value, self.out):
            nn.init.trunc_normal_(layer.weight, std=0.02)
        nn.init.zeros_(self.out.bias)

    def forward(self, texts: Tensor, patches: Tensor) -> Tensor:
        """Maps texts ``[B, C, d]``, or ``[1, C, d]`` that are the same for all videos, and patches ``[B, N, d]``."""
        q = self._split(self.query(self.norm(texts))).expand(len(patches), -1, -1, -1)
        y = F.scaled_dot_product_attention(q, self._split(self.key(patches)), self._split(self.value(patches)))
        texts = texts + self.out(y.transpose(1, 2).flatten(2))
        return texts + self.ffn(self.ffn_norm(texts))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class VideoPrompts(nn.Module):
    r"""Class texts of each video, from the texts c of the classes and the patches of the video.

    .. math:: \bar z = \mathrm{LN}\left(\tfrac1T \textstyle\sum_t \mathrm{LN}_w(z_t) P\right), \quad
              \bar c = c + \mathrm{MHA}(q = \mathrm{LN}(c),\, kv = \bar z), \quad
              \tilde c = \bar c + \mathrm{FFN}(\mathrm{LN}(\bar c)), \quad
              \hat c = c + \alpha \odot \tilde c

    The two middle equations are one block. c is used at the length that the text tower gives it.

    Args:
        tower_width: w. width: d. layers: blocks. heads: of their attention. alpha: start of the learned
            :math:`\alpha` ``[d]``; with 0 the texts do not change.

    Source: arXiv 2208.02816 (X-CLIP), Eq. 10 and 11, and its code for the two norms of z.
    """

    def __init__(self, tower_width: int, width: int, layers: int, heads: int, alpha: float) -> None:
        super().__init__()
        self.patch_norm = nn.LayerNorm(tower_width)
        projection = torch.empty(tower_width, width)
        self.patch_projection = nn.Parameter(nn.init.normal_(projection, std=tower_width**-0.5))
        self.norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(layers))
        self.alpha = nn.Parameter(torch.full((width,), float(alpha)))

    def read(self, x: Tensor) -> Tensor:
        """Maps tokens of the tower's last block ``[..., w]`` to ``[..., d]``."""
        return self.patch_norm(x) @ self.patch_projection

    def forward(self, texts: Tensor, places: Tensor) -> Tensor:
        """Returns texts ``[B, C, d]`` from ``[C, d]`` and read places ``[B, N, d]``, means over frames."""
        patches = self.norm(places)
        prompted = texts[None]
        for block in self.blocks:
            prompted = block(prompted, patches)
        return texts + self.alpha * prompted
