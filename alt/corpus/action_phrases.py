"""Phrases for an action by a language model: MAXI's expansion of a name (arXiv 2303.08914, 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .expand import split_answer
from .language_model import LanguageModel
from .tagging import Tagger
from .verbs import list_phrase_texts
from .wordnet import WordNet

__all__ = ["PROMPT", "TEMPERATURE", "expand_names"]

PROMPT = "Generate 5 phrases to describe the action of {} in simple words"
"""Word for word as the paper prints it."""
TEMPERATURE = 0.4
"""Of the paper's sampling."""


def expand_names(
    names: Sequence[str],
    model: LanguageModel,
    tagger: Tagger,
    wordnet: WordNet,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> dict[str, list[str]]:
    """Returns the texts of every name: the verbs of the model's phrases as lemma and gerund, and the phrases.

    Args:
        names: actions. model: is asked, or its kept answers replayed. tagger: of sentences. wordnet: base forms.
        progress: is told how many names of how many are done.

    Raises:
        LookupError, ConnectionError: as in :meth:`LanguageModel.ask`. All answers so far are kept.
    """
    found: dict[str, list[str]] = {}
    for done, name in enumerate(names):
        progress(done, len(names))
        phrases = split_answer(model.ask(PROMPT.format(name)))
        if len(phrases) == 1:
            phrases = phrases[0].split(",")
        texts = [text for phrase in phrases for text in list_phrase_texts(phrase, tagger, wordnet)]
        found[name] = [text for text in dict.fromkeys(texts) if text != name]
    return found
