"""The verbs of phrases and captions, each as lemma and gerund: what MAXI puts into its bags (arXiv 2303.08914, 3.2)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from .inflect import form_gerund
from .tagging import Tagger, tag_sentence
from .wordnet import WordNet

__all__ = ["count_verbs", "list_phrase_texts", "list_verb_texts"]

_EMPTY = {"be", "have", "do"}
_LONGEST = 5
"""Words of a verb phrase. Longer answers are sentences, of which the verbs alone count."""


def list_verb_texts(text: str, tagger: Tagger, wordnet: WordNet) -> list[str]:
    """Returns lemma and gerund of every verb of a text, each once: "covers her face" gives "cover", "covering".

    Args:
        tagger: of sentences (:func:`alt.corpus.tagging.open_tagger`). wordnet: has the base forms of the verbs.
    """
    words = _split(text)
    return _write_forms(_find_lemmas(words, tagger.tag(words) if words else [], wordnet))


def list_phrase_texts(phrase: str, tagger: Tagger, wordnet: WordNet) -> list[str]:
    """Returns the texts of a verb phrase: those of its verbs, and the phrase with its first verb as a gerund.

    "rub cream" and "Rubbing cream." give "rub", "rubbing" and "rubbing cream". A tagger of sentences may find no verb
    in two words without a subject ("clapping hands" by spaCy); then the lexicon is asked.
    """
    words = _split(phrase)
    words = words[1:] if words[:1] == ["to"] else words
    if not words:
        return []
    tags = tagger.tag(words)
    lemmas = _find_lemmas(words, tags, wordnet)
    if not lemmas:
        tags = tag_sentence(words, wordnet)
        lemmas = _find_lemmas(words, tags, wordnet)
    found = _write_forms(lemmas)
    if lemmas and len(words) <= _LONGEST and tags[0] == "VERB":
        found.append(" ".join([form_gerund(lemmas[0]), *words[1:]]))
    return list(dict.fromkeys(found))


def count_verbs(texts: Iterable[str], tagger: Tagger, wordnet: WordNet) -> Counter[str]:
    """Returns how often each verb occurs in texts, by its gerund: names for a larger dictionary."""
    split = [words for words in map(_split, texts) if words]
    return Counter(form_gerund(lemma) for words in split for lemma in _find_lemmas(words, tagger.tag(words), wordnet))


def _split(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+(?:['-][^\W\d_]+)*", text.lower())


def _find_lemmas(words: list[str], tags: list[str], wordnet: WordNet) -> list[str]:
    found = []
    for word, tag in zip(words, tags, strict=True):
        bases = wordnet.base_forms(word, "v") if tag == "VERB" else []
        if bases and bases[0] not in _EMPTY:
            found.append(bases[0])
    return found


def _write_forms(lemmas: list[str]) -> list[str]:
    return list(dict.fromkeys(form for lemma in lemmas for form in (lemma, form_gerund(lemma))))
