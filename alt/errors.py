"""The exceptions that a command shows to its user as one sentence instead of a traceback, and texts fit to be shown."""

from __future__ import annotations

import re
from typing import Any


class UserError(ValueError):
    """A file, class or checkpoint that the user can put right. The message is one complete sentence."""


class UsageError(UserError):
    """A value that an option does not accept. The message is one complete sentence that names the option."""


class Terminated(SystemExit):
    """Raised on SIGTERM. Uncaught, it ends the process with status 143 and no traceback.

    Args:
        message: one sentence for the user: what was saved, and how to continue.
    """

    STATUS = 143

    def __init__(self, message: str) -> None:
        super().__init__(self.STATUS)
        self.message = message


def one_line(error: BaseException, limit: int = 200) -> str:
    """Returns the first sentence of another library's error, short enough to quote."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0].strip().rstrip(".")
    return text if len(text) <= limit else text[: limit - 3] + "..."


# C0 and C1 controls, DEL, separators of lines, marks that turn the direction of a text, halves of surrogate pairs.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Returns a text with control characters as escapes: ``\\x1b`` is shown, where the character would be obeyed.

    A name from a file or a command line could otherwise clear the screen, change its title, or forge a line.
    """
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def refuse_unordered(values: Any, name: str) -> None:
    """Raises TypeError for a set where the order decides: its order is another one in every process."""
    if isinstance(values, set | frozenset):
        raise TypeError(f"{name}: expected a list or another sequence, got a set, whose order changes from run to run")
