"""Answers of slow models in a file, one JSON object per line: kept as soon as they come, and never asked for twice."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeVar

from alt.files import describe_error, refuse_special

__all__ = ["KeptLines"]

T = TypeVar("T")


class KeptLines:
    """A .jsonl file to which lines are appended. Half a line at its end, which a killed run may leave, is dropped.

    Args:
        path: of the file, which need not be there yet. what: its kind, which begins messages ("answers").
    """

    def __init__(self, path: str | os.PathLike[str], what: str) -> None:
        self.path, self.what = Path(path), what

    def read(self, parse: Callable[[Any], T]) -> list[T]:
        """Returns ``parse(row)`` of every line.

        Raises:
            ValueError: a line is no JSON, or ``parse`` refuses it (KeyError, TypeError, ValueError).
        """
        refuse_special(self.path)
        if not self.path.exists():
            return []
        text = self.path.read_bytes()
        lines, last = text.splitlines(), text[text.rfind(b"\n") + 1 :]
        if last and not _is_json(last):
            lines.pop()
            os.truncate(self.path, len(text) - len(last))
        found = []
        for number, line in enumerate(lines, 1):
            try:
                found.append(parse(json.loads(line)))
            except (ValueError, KeyError, TypeError) as error:
                reason = f"no {error}" if isinstance(error, KeyError) else describe_error(error)
                raise ValueError(f"{self.what}: {self.path}, line {number} cannot be read ({reason})") from None
        return found

    def append(self, row: dict[str, Any]) -> None:
        """Writes a line and syncs it, so that a killed run has it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            if file.tell() and _last_byte(file) != b"\n":  # a file by hand
                file.write(b"\n")
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())


def _last_byte(file: IO[bytes]) -> bytes:
    file.seek(-1, os.SEEK_END)
    return file.read(1)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
