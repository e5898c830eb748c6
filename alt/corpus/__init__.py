"""The text corpus: the entities with which the regions of a video are aligned."""

from __future__ import annotations

from .corpus import CATEGORIES, Corpus, Entity

__all__ = ["CATEGORIES", "Corpus", "Entity"]
