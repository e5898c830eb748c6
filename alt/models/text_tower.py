"""The text tower as a part of a video model: it is saved with the model, and may be trained."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alt.hosts import find_host, find_tower

from .heads import adopt_rows
from .prompts import check_room, insert_vectors, spread_ids, token_embedding

__all__ = ["TextTower"]


class TextTower(nn.Module):
    """The text tower of a CLIP, with the ids of the class texts.

    The ids are a buffer, so a model that holds its text tower embeds its classes without a tokenizer.

    Args:
        clip: a CLIP, whose image tower is dropped.
        vectors: learned vectors that every text gets behind its start token, the parameter ``prompt_adapter``; 0: none.

    Raises:
        TypeError: its text tower is not of a kind that can be saved.
    """

    ids: Tensor

    def __init__(self, clip: Any, vectors: int = 0) -> None:
        super().__init__()
        host, tower = find_tower(clip)
        sizes = host.describe_text(clip)
        if tower is not clip:  # where it was dropped, the whole model stands for it
            host.drop_tower(clip)
        self.clip = clip
        self.prompt_adapter: nn.Parameter | None = None
        if vectors:
            weight = token_embedding(clip).weight
            start = torch.empty(vectors, weight.shape[1], dtype=weight.dtype, device=weight.device)
            self.prompt_adapter = nn.Parameter(nn.init.normal_(start, std=0.02))
        self.register_buffer("ids", torch.empty(0, sizes["context_length"], dtype=torch.int64))

    def set_ids(self, ids: Tensor | None) -> None:
        """Sets the class texts by their ids ``[C, length]``; None: there are none.

        Raises:
            ValueError: a text does not fit behind the learned vectors.
        """
        if ids is not None:
            self._check_room(ids)
        self.ids = self.ids[:0] if ids is None else ids.to(self.ids)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        adopt_rows(self, state_dict, prefix, ("ids",))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def no_decay(self) -> list[nn.Parameter]:
        own = [] if self.prompt_adapter is None else [self.prompt_adapter]
        return [*own, *find_host(self.clip).no_decay(self.clip)]

    def forward(self, ids: Tensor | None = None, *, unit: bool) -> Tensor:
        """Returns embeddings ``[n, d]`` of ``ids`` ``[n, length]``, None: of the class texts; ``unit``: of length 1."""
        ids, host = self.ids if ids is None else ids, find_host(self.clip)
        if self.prompt_adapter is None:
            x = host.encode_text(self.clip, ids)
        else:
            with insert_vectors(self.clip, self.prompt_adapter):
                x = host.encode_text(self.clip, spread_ids(ids, len(self.prompt_adapter)))
        return F.normalize(x, dim=-1) if unit else x

    @torch.no_grad()
    def embed(self, ids: Tensor | None = None, *, unit: bool, batch_size: int = 256) -> Tensor:
        """Returns what a call returns, in batches of ``batch_size`` texts and without gradient.

        Raises:
            ValueError: a text does not fit behind the learned vectors.
        """
        ids = self.ids if ids is None else ids.to(self.ids)
        self._check_room(ids)
        return torch.cat([self(part, unit=unit) for part in ids.split(batch_size)])

    def _check_room(self, ids: Tensor) -> None:
        if self.prompt_adapter is not None:
            check_room(ids, len(self.prompt_adapter), [f"class text {number}" for number in range(len(ids))])
