"""What ALT asks its language model, word for word as the two versions of the paper print it."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["PROMPTS", "Prompts"]


class Prompts(NamedTuple):
    """units: asks what an action is known by. descriptions: ask what a phrase is. ``{}``: the action or phrase."""

    units: str
    descriptions: tuple[str, ...]


_LISTED = "Concisely list potential explanations for {}"
_EXPLAINED = "Concisely explain {} in one sentence"

PROMPTS: dict[str, Prompts] = {
    "iclr": Prompts(
        "What are identifying object/body parts/scenes/roles of an action {}? List them concisely.",
        ("Concisely describe what an action {} looks like", _LISTED, _EXPLAINED),
    ),
    "cvpr": Prompts(
        "What are identifying visual characteristics, such as object, body parts, scenes, and roles, of a/an {} video "
        "action? List them concisely.",
        ("Concisely describe what a/an {} looks like", _LISTED, _EXPLAINED),
    ),
}
"""By the paper's version. "a/an" is the paper's own."""
