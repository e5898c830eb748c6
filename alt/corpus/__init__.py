"""The text corpus: the entities with which the regions of a video are aligned."""

from __future__ import annotations

from .corpus import Corpus, check_encoders
from .corpus_file import READY
from .entity import CATEGORIES, Entity, TextSource

__all__ = ["CATEGORIES", "READY", "Corpus", "Entity", "TextSource", "check_encoders"]
