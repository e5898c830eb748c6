"""Action names of published data sets, as lists that ship with the package, and names written as words."""

from __future__ import annotations

import re
from pathlib import Path

from alt.files import read_text

from .clip_lists import read_labels

__all__ = ["ACTION_SETS", "name_to_text", "read_action_names", "read_names"]

_FOLDER = Path(__file__).parent / "names"
ACTION_SETS: tuple[str, ...] = tuple(sorted(file.stem for file in _FOLDER.glob("*.txt")))
"""Names of the lists: Kinetics-400 and -600, UCF-101, HMDB-51, Something-Something v2; Mini-Kinetics-200 and Mini
Something-Something v2, which are half of the classes of two of these."""


def read_action_names(name: str) -> list[str]:
    """Returns the action names of a data set, in the order of their numbers, as its authors write them.

    Raises:
        ValueError: there is no such list.
    """
    if name not in ACTION_SETS:
        raise ValueError(f"name: expected one of {', '.join(ACTION_SETS)}, got {name!r}")
    lines = read_text(_FOLDER / f"{name}.txt").splitlines()
    return [line for line in lines if not line.startswith("#")]


def read_names(source: str) -> list[str]:
    """Returns action names: of a list that ships, of a CSV with the columns id and name, or of a text file's lines.

    Raises:
        ValueError: it is none of them, or the file cannot be read.
    """
    if source in ACTION_SETS:
        return read_action_names(source)
    path = Path(source)
    if not path.is_file():
        raise ValueError(f"'{source}' is neither a file nor one of {', '.join(ACTION_SETS)}")
    if path.suffix == ".csv":
        return read_labels(path)
    return [line.strip() for line in read_text(path).splitlines() if line.strip() and not line.startswith("#")]


def name_to_text(name: str) -> str:
    """Returns a name as words: ``ApplyEyeMakeup`` and ``apply_eye_makeup`` both become ``apply eye makeup``.

    Names that have spaces already keep their capitals.
    """
    if re.search(r"\s", name.strip()):
        return " ".join(name.split())
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[_-]", " ", name.strip())
    return " ".join(words.lower().split())
