"""The exceptions that a command shows to its user as one sentence instead of a traceback."""

from __future__ import annotations


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
