"""Classes of a data set that training never saw, and draws of some of them, as zero-shot protocols take them.

Kinetics-600 has 232 names that Kinetics-400 has not. Twelve of them are classes of Kinetics-400 under another name, so
220 are new. The zero-shot protocol on Kinetics-600 (Chen and Huang 2021, arXiv 2108.02833) takes 160 of these 220 in
each of three draws; X-CLIP and ALT follow it. These draws are published, and ship as ``k600-160-of-220``.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from alt.files import describe_error, read_text, replacing

from .action_names import name_to_text

__all__ = ["DRAWS", "RENAMED", "ClassDraws", "find_new", "read_draws", "write_draws"]

_FOLDER = Path(__file__).parent / "draws"
DRAWS: tuple[str, ...] = tuple(sorted(file.stem for file in _FOLDER.glob("*.csv")))
"""Names of the draws that ship."""

RENAMED = {
    "changing wheel (not on bike)": "changing wheel",
    "cooking sausages (not on barbeque)": "cooking sausages",
    "dyeing hair": "dying hair",
    "hugging (not baby)": "hugging",
    "inflating balloons": "balloon blowing",
    "making the bed": "making bed",
    "opening bottle (not wine)": "opening bottle",
    "passing american football (not in game)": "passing American football (not in game)",
    "person collecting garbage": "garbage collecting",
    "throwing ball (not baseball or American football)": "throwing ball",
    "tying necktie": "tying tie",
    "waking up": "baby waking up",
}
"""Classes of Kinetics-600 -> the same class in Kinetics-400. Where a class was split, the larger part keeps its clips:
"hugging" became this "hugging (not baby)" and the new class "hugging baby". The published draws leave these out."""


class ClassDraws(NamedTuple):
    """classes: to draw from. draws: for each draw, the classes in it."""

    classes: tuple[str, ...]
    draws: tuple[tuple[str, ...], ...]


def find_new(names: Sequence[str], trained: Iterable[str]) -> list[int]:
    """Returns the numbers of those names that are no class of ``trained``, under this name or an older one.

    Case, underscores and CamelCase do not matter: "Dyeing_Hair" is Kinetics-400's "dying hair".
    """
    known = {_key(name) for name in trained}
    renamed = {_key(name): _key(older) for name, older in RENAMED.items()}
    return [i for i, name in enumerate(names) if _key(name) not in known and renamed.get(_key(name)) not in known]


def find_named(names: Sequence[str], wanted: Iterable[str]) -> list[int]:
    """Returns the numbers of the wanted names among ``names``, in the order of the numbers.

    Raises:
        ValueError: some are not there.
    """
    numbers = {_key(name): i for i, name in enumerate(names)}
    wanted = list(wanted)
    missing = [name for name in wanted if _key(name) not in numbers]
    if missing:
        raise ValueError(
            f"classes: expected {len(wanted)} of the data set's {len(names)}, {len(missing)} of them are not among "
            f"these: {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"
        )
    return sorted(numbers[_key(name)] for name in wanted)


def _key(name: str) -> str:
    return name_to_text(name).lower()


def read_draws(name: str | Path) -> ClassDraws:
    """Reads draws of classes: of one of :data:`DRAWS`, or of a CSV file with a column ``class`` and one for each draw.

    The columns hold 1 for a class that is in the draw, and 0 for one that is not.

    Raises:
        ValueError: there is no such file, or it is not of this form.
    """
    path = _FOLDER / f"{name}.csv" if str(name) in DRAWS else Path(name)
    try:
        rows = list(csv.reader(io.StringIO(read_text(path), newline=""), strict=True))
    except OSError as error:
        shipped = ", ".join(DRAWS)
        raise ValueError(f"{name}: neither a readable file ({describe_error(error)}) nor one of {shipped}") from None
    except csv.Error as error:
        raise ValueError(f"{path}: not a readable CSV file ({error})") from None
    if len(rows) < 2 or rows[0][:1] != ["class"] or len(rows[0]) < 2:
        raise ValueError(f"{path}: a column 'class' and one for each draw are expected")
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(rows[0]) or set(row[1:]) - {"0", "1"}:
            raise ValueError(
                f"{path}, line {number}: a class and {len(rows[0]) - 1} numbers 0 or 1 are expected, got {row!r:.80}"
            )
    draws = tuple(tuple(row[0] for row in rows[1:] if row[i] == "1") for i in range(1, len(rows[0])))
    return ClassDraws(tuple(row[0] for row in rows[1:]), draws)


def write_draws(found: ClassDraws, path: Path) -> Path:
    """Writes draws as :func:`read_draws` reads them, whole or not at all."""
    inside = [set(draw) for draw in found.draws]
    with replacing(path, "the draws") as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["class", *(f"draw {number}" for number in range(1, len(inside) + 1))])
        writer.writerows([name, *(int(name in draw) for draw in inside)] for name in found.classes)
    return path
