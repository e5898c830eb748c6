"""Action names by their verb and a dictionary: MAXI's three groups of heat maps (arXiv 2303.08914, supplement)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from .inflect import form_gerund

__all__ = ["VERB_GROUPS", "group_by_verb"]

VERB_GROUPS = ("in-dictionary verbs", "novel verbs", "general verbs")
_SEVERAL = 3
"""Names of a dictionary from which on a verb is general. Our choice: only the names of the groups are known to us."""


def group_by_verb(names: Sequence[str], dictionary: Sequence[str]) -> list[str]:
    """Returns the group of every name, one of ``VERB_GROUPS``.

    =================== ============================================================
    in-dictionary verbs a verb of the name is in one or two names of the dictionary
    novel verbs         it is in none
    general verbs       it is in three names or more
    =================== ============================================================

    Of several verbs of a name the most frequent one counts. "kick ball" and "kicking ball" have the same verb.
    Verbs of the dictionary are the first words of its names and all gerunds in them.

    Args:
        names: as words, in English (:func:`alt.data.action_names.name_to_text`). dictionary: the same.

    Raises:
        ValueError: the dictionary has no names.
    """
    if not dictionary:
        raise ValueError("dictionary: expected at least one name, got none")
    count: Counter[str] = Counter()
    for name in dictionary:
        words = _split(name)
        count.update({*words[:1], *map(form_gerund, words[:1]), *(word for word in words if word.endswith("ing"))})
    found = []
    for name in names:
        most = max((count[form] for word in _split(name) for form in _forms(word)), default=0)
        found.append(VERB_GROUPS[1 if most == 0 else 2 if most >= _SEVERAL else 0])
    return found


def _split(name: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", name.lower())


def _forms(word: str) -> tuple[str, ...]:
    return word, form_gerund(word)
