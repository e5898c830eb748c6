"""Builds a corpus from action labels by the paper's steps, with WordNet's descriptions and no language model.

Labels to units, units to the senses that WordNet lists, one sense per unit in its label, its group, and body parts
always. Equal meanings become one entity with all its labels. The result depends on labels, WordNet and tagger only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from alt.errors import refuse_unordered

from .corpus import Corpus
from .disambiguate import SenseChooser
from .entity import Entity
from .groups import BODY_PARTS, find_group
from .inflect import form_gerund
from .sense_model import SenseModel
from .tagging import Tagger, open_tagger
from .units import Unit, extract_units, split_label
from .wordnet import Sense, WordNet

__all__ = ["Choice", "build_corpus", "choose_sense", "choose_senses", "read_senses"]


class Choice(NamedTuple):
    """The sense of a unit in one label. sense: None if WordNet does not have the unit."""

    label: str
    unit: Unit
    senses: list[Sense]
    sense: Sense | None


def build_corpus(
    labels: Iterable[str],
    wordnet: WordNet,
    tagger: Tagger | None = None,
    wsd: str | SenseModel = "lesk",
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Corpus:
    """Returns the corpus of action labels, not embedded: body parts, then the entities in the order of the labels.

    A unit that WordNet does not have is a phrase. It has no description, and :func:`alt.corpus.expand.expand_corpus`
    asks a language model for one.

    Args:
        labels: action labels; equal ones count once. wordnet: the descriptions. tagger: None: the lexicon's.
        wsd: ``lesk``, ``frequent`` or a model. progress: is told how many labels of how many are done.

    Raises:
        TypeError: ``labels`` is one str or a set. ValueError: there is no label, or one has no letters.
    """
    entities = {(entity.unit, entity.category): entity for entity in _body_parts(wordnet)}
    places: dict[Any, tuple[str, str]] = {}
    for entity in entities.values():
        places[entity.description] = (entity.unit, entity.category)
    for choice in choose_senses(labels, wordnet, tagger, wsd, progress):
        entity = _make_entity(choice, wordnet)
        key = (entity.description or entity.unit, entity.category)
        found = entities.setdefault(places.setdefault(key[0], key), entity)
        sources = (*found.sources, *(label for label in entity.sources if label not in found.sources))
        entities[places[key[0]]] = found._replace(sources=sources)
    return Corpus.from_entities(entities.values())


def choose_senses(
    labels: Iterable[str],
    wordnet: WordNet,
    tagger: Tagger | None = None,
    wsd: str | SenseModel = "lesk",
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Iterable[Choice]:
    """Yields the sense of every unit of every label. Arguments and errors as in :func:`build_corpus`."""
    refuse_unordered(labels, "labels")
    if isinstance(labels, str):
        raise TypeError("labels: expected a sequence of str, got one str")
    names = list(dict.fromkeys(labels))
    if not names:
        raise ValueError("labels: expected at least one action label, got none")
    empty = next((name for name in names if not any(character.isalpha() for character in name)), None)
    if empty is not None:
        raise ValueError(f"labels: expected action labels with letters, got {empty!r}")
    tagger = open_tagger("lexicon", wordnet) if tagger is None else tagger
    chooser = SenseChooser(wordnet, wsd)
    for done, label in enumerate(names):
        progress(done, len(names))
        for unit in extract_units(label, tagger, wordnet):
            yield choose_sense(label, unit, chooser)


def choose_sense(label: str, unit: Unit, chooser: SenseChooser) -> Choice:
    """Returns the sense of one unit in a label. Its context is the other words of the label, remarks included."""
    words, remarks = split_label(label)
    action = names_action(unit, words)
    senses = read_senses(unit, chooser.wordnet, action)
    inside = set(unit.words.split())
    context = [word for word in (*words, *remarks) if word not in inside]
    whole = " ".join([*words, *remarks])
    return Choice(label, unit, senses, chooser.choose(senses, context, action, unit.words, whole) if senses else None)


def names_action(unit: Unit, words: list[str]) -> bool:
    """Returns whether a unit names the action of a label.

    It is the whole label, the noun at the end of a noun phrase ("golf swing"), or what is played or done.
    """
    whole = " ".join(words)
    named = words[0] in ("playing", "doing") or not words[0].endswith("ing")
    return unit.words == whole or (unit.part == "n" and named and whole.endswith(f" {unit.words}"))


def read_senses(unit: Unit, wordnet: WordNet, acts_first: bool = False) -> list[Sense]:
    """Returns the candidate senses of a unit, the likeliest first.

    Args:
        acts_first: the unit names an action, so its senses as an act come first ("fencing", "pull ups"). A verb that
            WordNet does not have may be one of its nouns.
    """
    nouns, verbs = wordnet.senses(unit.words, "n"), wordnet.senses(unit.words, "v")
    if acts_first:
        acts = [s for s in nouns if s.group == 4 and (unit.part == "n" or s.lemma == unit.words)]  # not a run of "run"
        others = verbs if unit.part == "v" else [sense for sense in nouns if sense not in acts]
        return [*acts, *others] or nouns or verbs
    return (verbs or nouns) if unit.part == "v" else (nouns or verbs)


def _make_entity(choice: Choice, wordnet: WordNet) -> Entity:
    sense = choice.sense
    if sense is None:
        words, _ = split_label(choice.label)
        acts = choice.unit.part == "v" or choice.unit.words == " ".join(words) or choice.unit.words.endswith("ing")
        return Entity(choice.unit.words, "", "motion" if acts else "object", (choice.label,))
    unit = form_gerund(sense.lemma) if sense.part == "v" else sense.lemma
    return Entity(unit, sense.gloss, find_group(sense, wordnet), (choice.label,), f"WordNet {sense.key}")


def _body_parts(wordnet: WordNet) -> list[Entity]:
    """Returns the parts of the body, each with its first sense that is one."""
    found = []
    for name in BODY_PARTS:
        sense = next((s for s in wordnet.senses(name, "n") if find_group(s, wordnet) == "body_part"), None)
        description, origin = ("", "") if sense is None else (sense.gloss, f"WordNet {sense.key}")
        found.append(Entity(name, description, "body_part", (), origin))
    return found
