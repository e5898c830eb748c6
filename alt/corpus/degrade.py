"""Worse corpora on purpose, for the question how much the quality of the text matters.

The paper changes which groups a corpus has. Here a share of the entities is taken away, replaced by other words, or
described by the wrong sense, and everything else stays.
"""

from __future__ import annotations

import torch

from alt.data.seeds import make_generator

from .corpus import Corpus
from .entity import Entity
from .groups import find_group
from .inflect import form_gerund
from .wordnet import Sense, WordNet

__all__ = ["DAMAGES", "degrade_corpus"]

DAMAGES = ("removed", "replaced", "wrong-sense")
"""removed: entities are left out. replaced: by words of WordNet drawn at random, in the same group. wrong-sense: by the
same word with the description of another sense."""


def degrade_corpus(corpus: Corpus, damage: str, share: float, wordnet: WordNet | None = None, draw: int = 0) -> Corpus:
    """Returns a corpus, not embedded, of which a share is worse.

    The draws are nested: with a larger share the same entities are damaged, and more. They are a function of ``draw``.
    Their number is ``round(share * K)``. For ``wrong-sense``, K counts the entities whose word has another sense, since
    the others can have no wrong one.

    Args:
        corpus: K entities. damage: one of ``DAMAGES``. share: 0 to 1. wordnet: needed but for ``removed``.
        draw: number of the draw.

    Raises:
        ValueError: an argument is out of range, nothing would be left, or WordNet is needed and not given.
    """
    if damage not in DAMAGES:
        raise ValueError(f"damage: expected one of {', '.join(DAMAGES)}, got {damage!r}")
    if not 0 <= share <= 1:
        raise ValueError(f"share: expected 0 to 1, got {share}")
    if damage != "removed" and wordnet is None:
        raise ValueError(f"wordnet: {damage} needs WordNet's files")
    entities, rows = list(corpus), list(range(len(corpus)))
    others = [_other_senses(entity, wordnet) if damage == "wrong-sense" and wordnet else [] for entity in entities]
    if damage == "wrong-sense":
        rows = [i for i in rows if others[i]]
    order = torch.randperm(len(rows), generator=make_generator("corpus", seed=draw)).tolist()
    chosen = {rows[i] for i in order[: round(share * len(rows))]}
    if damage == "removed":
        if len(chosen) == len(corpus):
            raise ValueError(f"share: {share} of {len(corpus)} entities leaves none")
        return Corpus.from_entities(entity for i, entity in enumerate(entities) if i not in chosen)
    for place in sorted(chosen):
        generator = make_generator("corpus", seed=draw, part=place)
        if damage == "wrong-sense":
            sense = others[place][int(torch.randint(len(others[place]), (), generator=generator))]
        else:
            assert wordnet is not None
            sense = _draw_sense(entities[place].category, wordnet, generator)
        unit = entities[place].unit if damage == "wrong-sense" else _name(sense)
        entities[place] = Entity(
            unit, sense.gloss, entities[place].category, entities[place].sources, f"{damage} WordNet {sense.key}"
        )
    return Corpus.from_entities(entities)


def _other_senses(entity: Entity, wordnet: WordNet) -> list[Sense]:
    senses = wordnet.senses(entity.unit, "v") if entity.category == "motion" else []
    found = [*senses, *wordnet.senses(entity.unit, "n")] if entity.description else []
    return [sense for sense in found if sense.gloss != entity.description]


def _draw_sense(category: str, wordnet: WordNet, generator: torch.Generator) -> Sense:
    """Returns the first sense of a word of WordNet in a group, drawn with equal chances."""
    part = "v" if category == "motion" else "n"
    words = wordnet.words(part)
    for _ in range(100_000):
        sense = wordnet.senses(words[int(torch.randint(len(words), (), generator=generator))], part)[0]
        if category == "label" or find_group(sense, wordnet) == category:
            return sense
    raise ValueError(f"wordnet: no word of the group {category} was found")


def _name(sense: Sense) -> str:
    return form_gerund(sense.lemma) if sense.part == "v" else sense.lemma
