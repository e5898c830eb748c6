"""The frozen text encoder: embeddings of corpus entities, and of class names in prompt templates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .prompts import draw, ensemble, fill, templates_of

__all__ = ["TextEncoder"]


class TextEncoder:
    """Embeds texts as unit rows in CLIP's joint space, in batches and without gradient.

    Args:
        clip: an open_clip model (its ``encode_text`` is used), on any device.
        tokenizer: list of texts -> ids ``[n, context_length]``.
        batch_size: texts per pass of the tower.
    """

    def __init__(self, clip: Any, tokenizer: Callable[[list[str]], Tensor], batch_size: int = 256) -> None:
        if not callable(getattr(clip, "encode_text", None)):
            raise TypeError(f"clip must be an open_clip model with a text tower, got {type(clip).__name__}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.clip = clip
        self.tokenizer = tokenizer
        self.batch_size = batch_size

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Returns ``[n, d]`` float32 rows of length 1 on the tower's device.

        Raises:
            TypeError: ``texts`` is a single str, or an entry is not a str.
            ValueError: there is no text.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise TypeError("texts must be a sequence of str")
        if not texts:
            raise ValueError("texts must hold at least one text")
        device = next(self.clip.parameters()).device
        rows = []
        training = self.clip.training
        self.clip.eval()
        try:
            with torch.inference_mode(False), torch.no_grad():
                for start in range(0, len(texts), self.batch_size):
                    ids = self.tokenizer(list(texts[start : start + self.batch_size])).to(device)
                    rows.append(F.normalize(self.clip.encode_text(ids).float(), dim=-1))
        finally:
            self.clip.train(training)
        return torch.cat(rows)

    def embed_templates(self, names: Sequence[str], templates: str | Sequence[str] = "alt16") -> Tensor:
        """Embeds every name in every template, ``[P, C, d]``, from which ``prompts.draw`` picks one per step."""
        chosen = templates_of(templates)
        if isinstance(names, str):
            raise TypeError("names must be a sequence of str, got one str")
        rows = self.embed([text for template in chosen for text in fill(template, names)])
        return rows.view(len(chosen), len(names), -1)

    def embed_classes(
        self,
        names: Sequence[str],
        templates: str | Sequence[str] = "alt16",
        mode: str = "ensemble",
        seed: int = 0,
    ) -> Tensor:
        """Returns class embeddings ``[C, d]`` with unit rows.

        Args:
            names: C class names.
            templates: ``alt16``, ``kinetics28``, ``none`` or a list, see :mod:`alt.models.prompts`.
            mode: ``ensemble``: normalised mean over templates; ``random``: one template, drawn by ``seed``.
            seed: of the draw. The same seed gives the same template.

        Raises:
            ValueError: the mode or set is unknown, or there are no names.
        """
        if mode not in ("ensemble", "random"):
            raise ValueError(f"mode must be 'ensemble' or 'random', got {mode!r}")
        if mode == "ensemble":
            return ensemble(self.embed_templates(names, templates))
        chosen = templates_of(templates)
        picked = int(draw(torch.arange(len(chosen)), seed))
        return self.embed_templates(names, [chosen[picked]])[0]
