"""The truth about a clip, where it is known, and how often a model agrees with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from .explanation import Explanation

__all__ = ["Agreement", "Truth", "measure_agreement", "share_in_clip"]


class Truth(NamedTuple):
    """The name of a clip's class, and per category the entities that can be seen in it, the main one first."""

    name: str
    entities: Mapping[str, Sequence[str]]

    def has(self, category: str, unit: str) -> bool:
        """True if the entity is in the clip."""
        return unit in self.entities.get(category, ())


def share_in_clip(explanation: Explanation, truth: Truth) -> float:
    """Returns the share of the aligned tokens, in [0, 1], that chose an entity that is in the clip."""
    return sum(entity.share for entity in explanation.entities if truth.has(entity.category, entity.unit))


class Agreement(NamedTuple):
    """Shares of clips, in [0, 1], about which a model is right.

    Attributes:
        clips: how many were looked at.
        top1, top5: share whose class is the most probable one, or among the five most probable.
        categories: share whose most chosen entity of the category is in the clip; the largest share first.
    """

    clips: int
    top1: float
    top5: float
    categories: dict[str, float]


def measure_agreement(clips: Iterable[tuple[Explanation, Truth]]) -> Agreement:
    """Returns how often explanations agree with the truth.

    A clip counts against a category of which no token chose an entity.

    Raises:
        ValueError: there is no clip.
    """
    ranks: list[int] = []
    right: dict[str, list[bool]] = {}
    for explanation, truth in clips:
        names = [score.name for score in explanation.classes]
        ranks.append(names.index(truth.name) if truth.name in names else len(names) + 5)
        first = {entity.category: entity for entity in explanation.best_of_categories(at_least=0.0)}
        for category in truth.entities:
            right.setdefault(category, []).append(category in first and truth.has(category, first[category].unit))
    if not ranks:
        raise ValueError("clips: expected at least one, got none")
    shares = {category: sum(found) / len(found) for category, found in right.items()}
    ordered = dict(sorted(shares.items(), key=lambda item: -item[1]))
    top1, top5 = (sum(rank < k for rank in ranks) / len(ranks) for k in (1, 5))
    return Agreement(len(ranks), top1, top5, ordered)
