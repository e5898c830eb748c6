"""Entities that a language model proposes for action labels, and its descriptions of phrases (ALT, section 3.2)."""

from __future__ import annotations

import re
from collections.abc import Callable

from .corpus import Corpus
from .disambiguate import SenseChooser
from .entity import Entity
from .groups import find_group
from .language_model import LanguageModel
from .prompts import PROMPTS
from .units import split_label
from .wordnet import WordNet

__all__ = ["describe_phrases", "expand_corpus", "parse_proposals", "split_answer"]

_HEADINGS = {  # words of a heading -> category; roles are persons, which are objects here (alt.corpus.groups)
    "object": "object",
    "prop": "object",
    "equipment": "object",
    "role": "object",
    "body": "body_part",
    "scene": "scene",
    "setting": "scene",
    "location": "scene",
    "motion": "motion",
    "movement": "motion",
    "action": "motion",
}
_LONGEST = 4
"""Words of a proposed unit. Longer ones are sentences, not units."""


def expand_corpus(
    corpus: Corpus,
    model: LanguageModel,
    wordnet: WordNet,
    prompts: str = "cvpr",
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Corpus:
    """Returns a corpus with the units that a language model proposes for its labels, and with phrases described.

    Entities keep their numbers. A proposed word gets a description of WordNet, and a phrase, also one of ``corpus``
    without description, one of the model.

    Args:
        corpus: not embedded; its entities' sources are the labels. model: is asked. wordnet: for words.
        prompts: those of the paper's version ``iclr`` or ``cvpr``. progress: is told what is done of what.

    Raises:
        ValueError: the version of the prompts is unknown, or the corpus is embedded or names no labels.
        LookupError, ConnectionError: as in :meth:`LanguageModel.ask`. All answers so far are kept.
    """
    if prompts not in PROMPTS:
        raise ValueError(f"prompts: expected one of {', '.join(PROMPTS)}, got {prompts!r}")
    if corpus.embeddings is not None:
        raise ValueError("corpus: it is embedded; expand it before, and embed the result")
    labels = list(dict.fromkeys(label for sources in corpus.sources for label in sources))
    if not labels:
        raise ValueError("corpus: its entities name no action labels, about which a model could be asked")
    chooser = SenseChooser(wordnet)
    proposed = []
    for done, label in enumerate(labels):
        progress(done, len(labels))
        answer = model.ask(PROMPTS[prompts].units.format(" ".join(split_label(label)[0])))
        proposed += [_make_entity(unit, category, label, chooser) for unit, category in parse_proposals(answer)]
    if proposed:
        corpus = corpus.expand(Corpus.from_entities(proposed))
    return describe_phrases(corpus, model, chooser, prompts, progress)


def describe_phrases(
    corpus: Corpus,
    model: LanguageModel,
    chooser: SenseChooser,
    prompts: str = "cvpr",
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Corpus:
    """Returns a corpus whose entities without description have one of the model.

    The paper's three prompts give the candidates. The one with most words in common with the entity's labels is taken.
    """
    entities = list(corpus)
    bare = [i for i, entity in enumerate(entities) if not entity.description and entity.category != "label"]
    for done, i in enumerate(bare):
        progress(done, len(bare))
        unit, sources = entities[i].unit, entities[i].sources
        candidates = [
            (text, prompt.format(unit))
            for prompt in PROMPTS[prompts].descriptions
            for text in split_answer(model.ask(prompt.format(unit)))
        ]
        context = [word for label in sources for word in split_label(label)[0] if word not in unit.split()]
        text, prompt = candidates[chooser.choose_text([text for text, _ in candidates], context)]
        entities[i] = entities[i]._replace(description=text, origin=f"model {model.model}, prompt {prompt!r}")
    return Corpus.from_entities(entities)


def parse_proposals(answer: str) -> list[tuple[str, str]]:
    """Returns the (unit, category) of an answer: lines "Objects: ball, bat", or headings with a list below each."""
    found: list[tuple[str, str]] = []
    category = "object"
    for line in answer.splitlines():
        text = re.sub(r"^[\s>#*•\-–]*(\d+[.)])?\s*", "", line).replace("*", "").strip()
        heading, colon, rest = text.partition(":")
        named = next((_HEADINGS[word] for word in _HEADINGS if word in heading.lower()), None)
        if (colon or not rest) and named is not None and (colon or text.lower().rstrip("s") in _HEADINGS):
            category = named
            text = rest
        for part in re.split(r"[,;/]| and ", text):
            unit = re.sub(r"\([^)]*\)|^(?:a|an|the)\s+|[.\"]", "", part.strip().lower()).strip()
            if re.fullmatch(r"[a-z][a-z' -]*", unit) and len(unit.split()) <= _LONGEST:
                found.append((unit, category))
    return list(dict.fromkeys(found))


def split_answer(answer: str) -> list[str]:
    """Returns the explanations of an answer, one per line, without bullets; at least one."""
    lines = [re.sub(r"^[\s>#*•\-–]*(\d+[.)])?\s*", "", line).replace("*", "").strip() for line in answer.splitlines()]
    return [" ".join(line.split()).rstrip(".") for line in lines if line and not line.endswith(":")] or [answer.strip()]


def _make_entity(unit: str, category: str, label: str, chooser: SenseChooser) -> Entity:
    senses = chooser.wordnet.senses(unit, "n") or chooser.wordnet.senses(unit, "v")
    fitting = [sense for sense in senses if find_group(sense, chooser.wordnet) == category]
    if not senses:
        return Entity(unit, "", category, (label,))
    sense = chooser.choose(fitting or senses, split_label(label)[0])
    return Entity(sense.lemma, sense.gloss, category, (label,), f"WordNet {sense.key}")
