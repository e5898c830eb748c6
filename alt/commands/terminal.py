"""What a command shows: every line goes through :func:`echo`, so no name in it can steer the terminal."""

from __future__ import annotations

import typer

from alt.errors import printable

__all__ = ["echo", "say"]


def echo(text: str = "", *, err: bool = False, nl: bool = True) -> None:
    """Shows a text on stdout, or with ``err`` on stderr, its control characters as escapes; lines stay lines."""
    typer.echo("\n".join(printable(line) for line in text.split("\n")), err=err, nl=nl)


def say(line: str) -> None:
    """Shows one line of progress on stderr."""
    echo(line, err=True)
