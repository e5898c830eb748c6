"""Forms of English verbs: the gerund of a base form."""

from __future__ import annotations

import re

__all__ = ["form_gerund"]

# Verbs of several syllables whose last one is stressed, and which therefore double their last letter.
_DOUBLING = {"begin", "permit", "prefer", "refer", "submit", "upset", "admit", "compel", "control", "occur", "regret"}


def form_gerund(verb: str) -> str:
    """Returns the gerund of a verb, of whose words the first one is inflected: ``wake up`` gives ``waking up``.

    A gerund stays itself only if it is no verb of its own ("sing", "bring", "swing" are).
    """
    word, _, rest = verb.partition(" ")
    if word.endswith("ing") and re.search(r"[aeiouy].*ing$", word) and not word.endswith(("ying", "eing")):
        form = word
    elif word.endswith("ie"):
        form = f"{word[:-2]}ying"
    elif word.endswith("e") and not word.endswith(("ee", "oe", "ye")) and word not in ("singe", "tinge", "be"):
        form = f"{word[:-1]}ing"
    elif re.fullmatch(r"[^aeiou]*(?:qu)?[aeiouy][bdgklmnprt]", word) or word in _DOUBLING:
        form = f"{word}{word[-1]}ing"
    elif word.endswith("ic"):
        form = f"{word}king"
    else:
        form = f"{word}ing"
    return f"{form} {rest}".strip()
