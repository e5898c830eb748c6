"""Tokens of EntityWorld's clips, computed once per r by the frozen tower and kept in memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from alt.corpus import Corpus
from alt.entityworld.mini_clip import load_mini_clip
from alt.entityworld.world import Split, World, normalise
from alt.hosts import find_tower
from alt.models.region_encoder import RegionEncoder
from alt.models.text import TextEncoder

__all__ = ["CachedSplit", "TokenCache", "VideoTokens"]


class VideoTokens(NamedTuple):
    """Tokens of clips ``x [N, T, n, d]`` at one r, and their labels ``[N]``."""

    x: Tensor
    labels: Tensor

    def reversed(self) -> VideoTokens:
        """Returns the tokens of the clips played backwards: the same ones, because the tower sees single frames."""
        return VideoTokens(self.x.flip(1), self.labels)

    def take(self, rows: Sequence[int] | Tensor) -> VideoTokens:
        rows = torch.as_tensor(rows)
        return VideoTokens(self.x[rows], self.labels[rows])


class CachedSplit(NamedTuple):
    """A split without its tokens, so independent of r: the target's boxes ``[N, T, 4]`` and class texts ``[C, d]``."""

    split: Split
    boxes: Tensor
    texts: Tensor


class TokenCache:
    """A world seen through a frozen small CLIP.

    Args:
        world: source of the clips.
        pretrained: the small CLIP, "entity-world" or a path, as in :func:`~alt.entityworld.mini_clip.load_mini_clip`.
        templates: of class names, see :meth:`~alt.models.text.TextEncoder.embed_classes`.

    Raises:
        ValueError: the small CLIP was trained on pictures of another size, or lacks words of the world.
    """

    def __init__(
        self, world: World, pretrained: str | os.PathLike[str] = "entity-world", templates: str = "none"
    ) -> None:
        self.world = world
        self.pretrained = pretrained
        self.mini = load_mini_clip(pretrained)
        if self.mini.config.image_size != world.config.size:
            raise ValueError(
                f"pretrained: the small CLIP sees {self.mini.config.image_size} px, the world draws "
                f"{world.config.size} px; train one with python -m alt.entityworld.mini_clip_training"
            )
        self.templates = templates
        self.text = TextEncoder(self.mini.clip, self.mini.tokenizer)
        self.corpus = Corpus.from_entities(world.corpus_rows()).embed(self.text)
        self._tower = RegionEncoder(find_tower(self.mini.clip)[1], 0).requires_grad_(False).eval()
        self._frames: dict[str, tuple[Tensor, CachedSplit]] = {}
        self._tokens: dict[tuple[str, Any], VideoTokens] = {}

    @property
    def num_blocks(self) -> int:
        """Returns the number of blocks of the small CLIP's image tower."""
        return self._tower.num_blocks

    def split(self, name: str) -> CachedSplit:
        return self._render_split(name)[1]

    def tokens(self, name: str, r: int | tuple[int, ...], keep: bool = True) -> VideoTokens:
        """Returns the tokens of a split with r tokens merged per block, cached unless ``keep`` is False."""
        found = self._tokens.get((name, r))
        if found is None:
            frames, cached = self._render_split(name)
            self._tower.r = r
            with torch.inference_mode():
                x = torch.cat([self._tower(normalise(part)).x for part in frames.split(64)])
            found = VideoTokens(x.clone(), cached.split.labels)
            if keep:
                self._tokens[name, r] = found
        return found

    def forget(self, r: int | tuple[int, ...]) -> None:
        """Drops the tokens of one r."""
        self._tokens = {key: value for key, value in self._tokens.items() if key[1] != r}

    def frames(self, name: str) -> Tensor:
        """Returns the pictures of a split's clips, uint8 ``[N, T, 3, H, W]``."""
        return self._render_split(name)[0]

    def clips(self, name: str, rows: slice = slice(None)) -> Tensor:
        """Returns clips ``[N, T, 3, H, W]`` of a split, CLIP-normalised."""
        return normalise(self.frames(name)[rows])

    def _render_split(self, name: str) -> tuple[Tensor, CachedSplit]:
        if name not in self._frames:
            split = self.world.split(name)
            done = self.world.render(split)
            texts = self.text.embed_classes(split.class_names, self.templates)
            self._frames[name] = (done.frames, CachedSplit(split, done.boxes, texts))
        return self._frames[name]
