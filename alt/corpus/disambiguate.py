"""Which sense of a word an action label means: extended Lesk, the most frequent sense, or a T5's choice.

Lesk chooses the sense whose description shares most words with the context. A label is two or three words long, so its
context is extended by the descriptions of its other words, and a sense's by those of its relations in WordNet
(Banerjee and Pedersen, 2002).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache, lru_cache

from .sense_model import SenseModel
from .wordnet import Sense, WordNet

__all__ = ["CHOICES", "SenseChooser"]

CHOICES = ("lesk", "frequent")
"""Ways to choose a sense."""

_STOP_WORDS = (
    "a an the of or and in on at to for from by with without as is are was were be been being that this these "
    "those which who whom whose it its his her their one's you your he she they we i not no nor so such than then "
    "there into onto over under up down out off about after before between through during against among upon "
    "within some any each every all both other another more most less very especially usually often used use "
    "using uses have has had having do does did done make makes made making can may might will would someone "
    "something one etc kind type sort form part piece thing things way act action person people given certain "
    "consisting but if when where while also only same like e.g i.e esp"
)
_STOP = frozenset(_STOP_WORDS.split())
# How well a camera sees what the groups of lexnames(5WN) hold: things, food, animals, plants and bodies best.
_SEEN = {
    **dict.fromkeys((5, 6, 8, 13, 17, 20, 27), 0.6),
    **dict.fromkeys((4, 11, 18, 19), 0.3),
    **dict.fromkeys((29, 34, 35, 36, 38), 0.5),  # verbs of the body, of eating, touching, making and moving
    33: 0.3,  # of contests
}
_NAME, _ACT = -0.8, 0.6
_OVERLAP = 2.0
_RANK = 0.02  # senses that occur equally often in WordNet's tagged texts, which most do not at all, keep its order


class SenseChooser:
    """Chooses senses by their context.

    Args:
        wordnet: the data base. method: ``lesk``, ``frequent`` for the first sense that WordNet lists, or a model that
            chooses (:class:`alt.corpus.sense_model.SenseModel`).

    Raises:
        ValueError: the method is unknown.
    """

    def __init__(self, wordnet: WordNet, method: str | SenseModel = "lesk") -> None:
        if isinstance(method, str) and method not in CHOICES:
            raise ValueError(f"wsd: expected {', '.join(CHOICES)} or a T5, got {method!r}")
        self.wordnet = wordnet
        self.method = method
        self._signature = lru_cache(maxsize=None)(self._read_signature)
        self._meanings = lru_cache(maxsize=None)(self._read_meanings)

    def choose(
        self,
        senses: Sequence[Sense],
        context: Sequence[str],
        names_action: bool = False,
        unit: str | None = None,
        label: str | None = None,
    ) -> Sense:
        """Returns the sense that is frequent, seen by a camera and shares words with the context.

        Args:
            senses: at least one, as :meth:`WordNet.senses` returns them. context: the other words of the label.
            names_action: the unit is the action, and not what it is done with, so an act fits better.
            unit, label: for a model: the word as it stands in the label, and the label. None: the senses' lemma, and
                the context.
        """
        if self.method == "frequent" or len(senses) == 1:
            return senses[0]
        if not isinstance(self.method, str):
            descriptions = [sense.gloss for sense in senses]
            return senses[self.method.choose(unit or senses[0].lemma, descriptions, label or " ".join(context))]
        around = self._weigh_context(context)
        for word in senses[0].lemma.split():
            around.pop(word, None)
        top = max(self.wordnet.count(sense) for sense in senses)
        scores = [
            (self.wordnet.count(sense) + 1) / (top + 1) - _RANK * rank + self._fit(sense, around, names_action)
            for rank, sense in enumerate(senses)
        ]
        return senses[scores.index(max(scores))]

    def choose_text(self, texts: Sequence[str], context: Sequence[str]) -> int:
        """Returns which of several descriptions shares most words with a context; the first of equal ones."""
        around = self._weigh_context(context)
        found = [set(self._split(text)) for text in texts]
        shared = [sum(around.get(word, 0.0) for word in words) / math.sqrt(8 + len(words)) for words in found]
        return shared.index(max(shared))

    def _fit(self, sense: Sense, around: dict[str, float], names_action: bool) -> float:
        """Returns how well a sense fits: its overlap with the context, and whether a camera sees it."""
        signature = self._signature(sense)
        overlap = sum(weight * min(signature[word], 2.0) for word, weight in around.items() if word in signature)
        norm = math.sqrt(8 + sum(signature.values()))
        name = _NAME if self.wordnet.is_name(sense) else 0.0
        act = _ACT if names_action and sense.group == 4 else 0.0
        return _SEEN.get(sense.group, 0.0) + act + name + _OVERLAP * overlap / norm

    def _weigh_context(self, context: Sequence[str]) -> dict[str, float]:
        """Returns the words around a unit with weights: those of the label, and those that describe them."""
        around: dict[str, float] = {}
        for word in context:
            for base in self._bases(word):
                around[base] = 3.0 * self._rarity(base)
            for other, weight in self._meanings(word).items():
                around[other] = max(around.get(other, 0.0), weight)
        return around

    def _read_meanings(self, word: str) -> dict[str, float]:
        """Returns the words that describe a word of the context; those of its frequent senses weigh most."""
        found: dict[str, float] = {}
        for part in "nv":
            for rank, sense in enumerate(self.wordnet.senses(word, part)[:4]):
                for other in self._split(sense.gloss, *sense.synonyms):
                    found[other] = max(found.get(other, 0.0), self._rarity(other) / (1 + rank))
        return found

    @cache  # noqa: B019
    def _rarity(self, word: str) -> float:
        """Returns a weight that falls with the frequency of a word: "set" says little, "volleyball" much."""
        count = self.wordnet.frequency(word, "n") + self.wordnet.frequency(word, "v")
        return 2.0 / math.log2(4.0 + count)

    def _read_signature(self, sense: Sense) -> dict[str, float]:
        """Returns the words that describe a sense: definition, examples, synonyms, and its relations at half weight."""
        found: dict[str, float] = dict(Counter(self._split(sense.gloss, *sense.examples, *sense.synonyms)))
        near = Counter(word for text in self.wordnet.related(sense) for word in self._split(text))
        for word, count in near.items():
            found[word] = found.get(word, 0.0) + min(count, 3) / 2
        for word in sense.lemma.split():
            found.pop(word, None)
        return found

    def _split(self, *texts: str) -> list[str]:
        words = re.findall(r"[a-z]+", " ".join(texts).lower())
        return [base for word in words if word not in _STOP and len(word) > 2 for base in self._bases(word)[:1]]

    @cache  # noqa: B019  # lives as long as its chooser, which a command makes once
    def _bases(self, word: str) -> list[str]:
        for part in "nv":
            forms = self.wordnet.base_forms(word, part)
            if forms:
                return [min(forms, key=len)]
        return [word]
