"""Shows the package's log ("alt") on the error stream of a command."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from .terminal import echo

logger = logging.getLogger("alt")


class _Stderr(logging.Handler):
    """Writes to the stream that is stderr at the time, which a test may have replaced."""

    def emit(self, record: logging.LogRecord) -> None:
        echo(self.format(record), err=True)


class _Levels(logging.Formatter):
    """Puts "Warning:" before a warning and nothing before a remark."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno < logging.WARNING else f"{record.levelname.capitalize()}: {text}"


@contextlib.contextmanager
def log_to_stderr() -> Iterator[None]:
    """Shows warnings of "alt" while a command runs; handler and level are as before afterwards."""
    handler = _Stderr()
    handler.setFormatter(_Levels())
    before = logger.level
    logger.addHandler(handler)
    set_verbosity(0)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def set_verbosity(count: int) -> None:
    """Shows warnings only (0), what is being done as well (1), or tracebacks of errors as well (2)."""
    logger.setLevel((logging.WARNING, logging.INFO, logging.DEBUG)[min(count, 2)])
