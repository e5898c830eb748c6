"""Docstrings use three marks of Sphinx (``:func:`x```, ``:math:`x```, ``.. math:: x``); the site reads Markdown."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:func|class|meth|mod|data|attr):`~?(?:[\w.]*\.)?([\w]+)`")
FORMULA = re.compile(r":math:`([^`]+)`")
DISPLAY = re.compile(r"^( *)\.\. math:: (.+)$", re.M)


def to_markdown(text: str) -> str:
    """Returns the docstring with the three marks as Markdown."""
    text = ROLE.sub(r"``\1``", text)
    text = FORMULA.sub(r"\\(\1\\)", text)
    return DISPLAY.sub(r"\1\\[ \2 \\]", text)


class SphinxMarkup(griffe.Extension):
    """Rewrites every docstring after griffe has read it."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)
