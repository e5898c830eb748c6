"""Units of an action label: the nouns, noun phrases, verbs and verb phrases that may become entities."""

from __future__ import annotations

import re
from typing import NamedTuple

from alt.data.action_names import name_to_text

from .tagging import Tagger
from .wordnet import WordNet

__all__ = ["Unit", "extract_units", "split_label"]

_LIGHT = {"do", "use", "get", "make", "go", "be", "have", "put", "play", "take", "give", "receive"}
"""Verbs that name no movement by themselves: "doing aerobics" is aerobics."""
_PARTICLES = {"up", "down", "out", "off", "away"}
_PREPOSITIONS = {"on", "in", "over"}  # "putting on shoes", "coloring in", but "running on treadmill"


class Unit(NamedTuple):
    """words: as they stand in the label, lower case. part: "n" for nouns, "v" for verbs."""

    words: str
    part: str


def split_label(label: str) -> tuple[list[str], list[str]]:
    """Returns the words of a label, and those of its remarks in brackets: "curling (sport)".

    Remarks say what is meant, and are no part of the action. Negated ones ("not cat") are left out.
    """
    text = name_to_text(label).lower()
    remarks = [remark for remark in re.findall(r"\(([^)]*)\)", text) if not remark.startswith("not ")]
    main = re.sub(r"\([^)]*\)", " ", text)
    return _words(main), _words(" ".join(remarks))


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+(?:['-][^\W\d_]+)*", text.replace("person's ", ""))


def extract_units(label: str, tagger: Tagger, wordnet: WordNet) -> list[Unit]:
    """Returns the units of an action label, each once, in their order.

    The whole label is one unit if WordNet has it as a noun or verb ("high jump", "tai chi"). Otherwise its verbs are
    units, with a particle where WordNet has both ("waking up"), and so are its longest noun phrases. Of a phrase that
    WordNet does not have, the longest parts that it has are units too ("exercise ball": exercise ball, exercise, ball).
    """
    words, _ = split_label(label)
    whole = " ".join(words)
    if len(words) > 1:
        for part in "nv":
            if wordnet.base_forms(whole, part):
                return [Unit(whole, part)]
    tags = tagger.tag(words) if words else []
    units: list[Unit] = []
    phrase: list[int] = []
    for i, tag in enumerate([*tags, "."]):
        if tag in ("NOUN", "ADJ"):
            phrase.append(i)
            continue
        if phrase:
            units += _of_phrase([words[k] for k in phrase], [tags[k] for k in phrase], wordnet)
            phrase = []
        if tag == "VERB":
            units += _of_verb(words, i, wordnet)
    if not units and words:  # "making up": light verbs alone
        units = [Unit(words[0], "v" if wordnet.base_forms(words[0], "v") else "n")]
    return list(dict.fromkeys(units))


def _of_verb(words: list[str], i: int, wordnet: WordNet) -> list[Unit]:
    """Returns the verb at a place; with the next word, or the one after its object, where WordNet has the two."""
    for j in range(i + 1, min(i + 4, len(words))):
        pair = f"{words[i]} {words[j]}"
        last = j + 1 == len(words) or words[i] == "putting"
        particle = words[j] in _PARTICLES or (words[j] in _PREPOSITIONS and last)
        if particle and wordnet.base_forms(pair, "v"):
            return [Unit(pair, "v")]
    if set(wordnet.base_forms(words[i], "v")) & _LIGHT and len(words) > 1:
        return []
    return [Unit(words[i], "v")]


def _of_phrase(words: list[str], tags: list[str], wordnet: WordNet) -> list[Unit]:
    if words and tags[-1] == "ADJ" and len(words) == 1:  # no noun at all: "mono"
        return [Unit(words[0], "n")] if wordnet.base_forms(words[0], "n") else []
    phrase = " ".join(words)
    if len(words) == 1 or wordnet.base_forms(phrase, "n"):
        return [Unit(phrase, "n")]
    units = [Unit(phrase, "n")]
    i = 0
    while i < len(words):
        for j in range(len(words), i, -1):
            part = " ".join(words[i:j])
            if wordnet.base_forms(part, "n") and not (j - i == 1 and tags[i] == "ADJ"):
                units.append(Unit(part, "n"))
                i = j
                break
        else:
            i += 1
    return units
