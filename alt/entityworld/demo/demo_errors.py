"""The one exception that the demonstration shows to its user instead of a traceback."""

from __future__ import annotations


class DemoError(Exception):
    """Something the user can put right; the text is one complete sentence."""


def one_line(error: BaseException, limit: int = 160) -> str:
    """The first sentence of what another library said, short enough to quote."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0].strip().rstrip(".")
    return text if len(text) <= limit else text[: limit - 3] + "..."
