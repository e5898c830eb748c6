"""The text corpus: entities that the regions of a video are aligned with."""

from __future__ import annotations

from .corpus import CATEGORIES, Corpus, Entity

__all__ = ["CATEGORIES", "Corpus", "Entity"]
