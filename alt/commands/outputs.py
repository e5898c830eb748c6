"""Output files of commands: checked before anything slow, and written in one place."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

from alt.errors import UserError
from alt.files import refuse_special, replacing

from .terminal import echo

STDOUT = Path("-")


def check_folder(folder: Path, option: str) -> None:
    """Creates the folder, and raises a UserError that names the option if nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{option}: the folder '{folder}' cannot be written ({error.strerror}).") from None


def check_file(path: Path | None, option: str) -> None:
    """Creates the folder of a file, and raises a UserError that names the option if it cannot be written there."""
    if path is None or path == STDOUT:
        return
    if path.is_dir():
        raise UserError(f"{option}: '{path}' is a folder, a file is expected.")
    try:
        refuse_special(path)
    except OSError as error:
        raise UserError(f"{option}: '{path}': {error.strerror}.") from None
    check_folder(path.parent, option)


def escape_json(text: str) -> str:
    """Returns a JSON text with those characters as JSON's escapes that would steer a terminal."""
    return re.sub("[\x7f-\x9f\u2028-\u202e\u2066-\u2069]", lambda match: f"\\u{ord(match[0]):04x}", text)


def write_json(value: Any, path: Path, what: str) -> None:
    """Writes ``value`` as JSON to a file, whole or not at all, or to stdout for ``-``."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    if path == STDOUT:
        echo(escape_json(text))
        return
    with replacing(path, what) as partial:
        partial.write_text(text + "\n", encoding="utf-8")
