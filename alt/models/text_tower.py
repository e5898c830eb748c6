"""The text tower as a part of a video model: it is saved with the model, and may be trained."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alt.hosts import find_host, find_tower

from .heads import adopt_rows

__all__ = ["TextTower"]


class TextTower(nn.Module):
    """The text tower of a CLIP, with the ids of the class texts.

    The ids are a buffer, so a model that holds its text tower embeds its classes without a tokenizer.

    Args:
        clip: a CLIP, whose image tower is dropped.

    Raises:
        TypeError: its text tower is not of a kind that can be saved.
    """

    ids: Tensor

    def __init__(self, clip: Any) -> None:
        super().__init__()
        host, tower = find_tower(clip)
        sizes = host.describe_text(clip)
        if tower is not clip:  # where it was dropped, the whole model stands for it
            host.drop_tower(clip)
        self.clip = clip
        self.register_buffer("ids", torch.empty(0, sizes["context_length"], dtype=torch.int64))

    def set_ids(self, ids: Tensor | None) -> None:
        """Sets the class texts by their ids ``[C, length]``; None: there are none."""
        self.ids = self.ids[:0] if ids is None else ids.to(self.ids)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        adopt_rows(self, state_dict, prefix, ("ids",))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def no_decay(self) -> list[nn.Parameter]:
        return find_host(self.clip).no_decay(self.clip)

    def forward(self, ids: Tensor | None = None, *, unit: bool) -> Tensor:
        """Returns embeddings ``[n, d]`` of ``ids`` ``[n, length]``, None: of the class texts; ``unit``: of length 1."""
        x = find_host(self.clip).encode_text(self.clip, self.ids if ids is None else ids)
        return F.normalize(x, dim=-1) if unit else x

    @torch.no_grad()
    def embed(self, ids: Tensor | None = None, *, unit: bool, batch_size: int = 256) -> Tensor:
        """Returns what a call returns, in batches of ``batch_size`` texts and without gradient."""
        ids = self.ids if ids is None else ids.to(self.ids)
        return torch.cat([self(part, unit=unit) for part in ids.split(batch_size)])
