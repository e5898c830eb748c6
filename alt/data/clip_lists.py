"""Lists of clips and label files: text files of many origins, read as they are meant or refused with the line."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from alt.files import describe_error, read_text, replacing

from .video import ClipError, PartOfVideo, Video

__all__ = [
    "Entry",
    "SetList",
    "as_listed",
    "check_entries",
    "read_labels",
    "read_list",
    "read_text_file",
    "write_labels",
    "write_list",
]


class Entry(NamedTuple):
    """One clip of a list.

    Attributes:
        path: of the clip. label: its class, in a set with several labels per clip the first one, or -1 for none.
        frames: the number of frames that the list gives, None if it gives none.
        labels: all classes, in a set with several per clip; None in others.
        span: the numbers of the first and last frame that belong to the clip, counted from 1; None: all frames.
    """

    path: Path
    label: int
    frames: int | None = None
    labels: tuple[int, ...] | None = None
    span: tuple[int, int] | None = None


class SetList(NamedTuple):
    """One part of a data set. entries: its clips. names: of the classes, by number. where: the list, for messages.
    missing: clips of the list that are not there and were left out."""

    entries: list[Entry]
    names: list[str]
    where: Path
    missing: int = 0


def read_text_file(path: Path, what: str) -> str:
    """Returns the text of a file; raises ClipError, which calls it ``what``."""
    try:
        return read_text(path)
    except OSError as error:
        raise ClipError(f"{path}: not a readable {what} ({describe_error(error)})") from None
    except ValueError as error:
        raise ClipError(str(error)) from None


def read_labels(path: str | Path) -> list[str]:
    """Reads class names, in the order of their numbers, from a CSV with the columns ``id`` and ``name``.

    Capitals and spaces around words do not matter. A name with a comma stands in quotation marks.

    Raises:
        ClipError: the file is no such CSV, a line has more columns, or a name is empty or there twice.
    """
    path = Path(path)
    text = read_text_file(path, "label file")
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise ClipError(f"{path}: not a readable label file ({describe_error(error)})") from None
    lines = [(number, [word.strip() for word in row]) for number, row in enumerate(rows, 1) if any(map(str.strip, row))]
    head = [word.lower() for word in lines[0][1]] if lines else []
    if head.count("id") != 1 or head.count("name") != 1:
        got = ", ".join(lines[0][1]) if lines else "nothing"
        raise ClipError(f"{path}: a CSV with the columns id (a number) and name is expected, got {got[:80]!r}")
    names: dict[int, str] = {}
    seen: dict[str, int] = {}
    for number, row in lines[1:]:
        if len(row) != len(head):
            raise ClipError(
                f"{path}, row {number}: {len(head)} columns are expected, got {len(row)}; put quotation marks around a "
                "name with a comma"
            )
        word, name = row[head.index("id")], row[head.index("name")]
        if not _is_number(word):
            raise ClipError(f"{path}, row {number}: a number is expected in the column id, got {word[:40]!r}")
        if not name:
            raise ClipError(f"{path}, row {number}: a name is expected, got none")
        if name in seen:
            raise ClipError(f"{path}, row {number}: the name {name[:80]!r} is also in row {seen[name]}")
        if int(word) in names:
            raise ClipError(f"{path}, row {number}: the number {int(word)} is there a second time")
        names[int(word)], seen[name] = name, number
    if not names or sorted(names) != list(range(len(names))):
        raise ClipError(f"{path}: every number from 0 up once is expected in the column id")
    return [names[i] for i in range(len(names))]


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) < 10


def write_labels(path: Path, names: Iterable[str]) -> Path:
    """Writes class names as :func:`read_labels` reads them, whole or not at all."""
    with replacing(path, "the class names") as partial, partial.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("id", "name"), *enumerate(names)])
    return path


def read_list(
    path: str | Path, root: str | Path | None = None, names: Sequence[str] | None = None, *, labelled: bool = True
) -> list[Entry]:
    """Reads lines ``path label``; paths are relative to ``root`` (default: the list's folder) and may hold spaces.

    The label is the last word, a number. With ``names`` it may also be a name: the longest one that ends the line.
    Lists of frame folders have lines ``path frames label`` or ``path start end label``, the numbers of the first and
    last frame, counted from 1. They are told from a path with spaces by the file that is there. The last form may have
    semicolons in place of its spaces. Where the clips are not ``labelled``, a line may be a path alone, and every label
    is -1. A line that begins with "#" is a comment, unless a name follows at once and a number ends it: that is a clip.

    Raises:
        ClipError: the file cannot be read, or a line is not of this form.
    """
    path = Path(path)
    base = path.parent if root is None else Path(root)
    longest = sorted(enumerate(names or []), key=lambda pair: -len(pair[1]))
    found = []
    for number, line in enumerate(read_text_file(path, "list file").split("\n"), 1):
        line = line.strip()
        if not line or _is_comment(line, base, labelled):
            continue
        if "\0" in line:
            raise ClipError(f"{path}, line {number}: a path is expected, got {line[:80]!r}")
        line = _without_semicolons(line)
        words = line.rsplit(maxsplit=1)
        if not labelled and os.path.exists(base / line):
            clip, label = line, -1
        elif len(words) == 2 and _is_number(words[1]):
            clip, label = words[0], int(words[1])
        else:
            match = next((i for i, name in longest if line.endswith((" " + name, "\t" + name))), None)
            if match is not None:
                label, clip = match, line[: -len((names or [])[match])].rstrip()
            elif not labelled:
                label, clip = -1, line
            else:
                known = "" if names is None else f", the label a number or one of the {len(names)} class names"
                raise ClipError(f"{path}, line {number}: 'path label' is expected{known}, got {line[:80]!r}")
        if names is not None and label >= len(names):
            raise ClipError(f"{path}, line {number}: a label below {len(names)} is expected, got {label}")
        entry = _entry(base, clip.strip(), label if labelled else -1)
        if entry.span is not None and not 1 <= entry.span[0] <= entry.span[1]:
            first, last = entry.span
            raise ClipError(
                f"{path}, line {number}: the first and last frame are expected, counted from 1, got {first} and {last}"
            )
        found.append(entry)
    if not found:
        raise ClipError(f"{path}: no clips listed in it")
    return found


def _is_comment(line: str, base: Path, labelled: bool) -> bool:
    """Whether a line begins with "#" and is no clip; HMDB-51 has clips as ``#20_Rhythm_clap_u_nm_np1_fr_goo_0.avi``."""
    if not line.startswith("#"):
        return False
    words = line.rsplit(maxsplit=1)
    named = line[1:2].strip() != "" and len(words) == 2 and _is_number(words[1])
    return not named and (labelled or "\0" in line or not os.path.exists(base / line))


def _without_semicolons(line: str) -> str:
    """Returns ``path;start;end;label`` with spaces between its parts, and any other line as it is."""
    parts = line.rsplit(";", 3)
    return " ".join(parts) if len(parts) == 4 and all(map(_is_number, parts[1:])) else line


def _entry(base: Path, clip: str, label: int) -> Entry:
    """Returns the entry of a clip; ``a 120`` is the folder ``a`` with 120 frames if only that is there, and ``a 1 120``
    its frames 1 to 120."""
    if os.path.exists(base / clip):
        return Entry(base / clip, label)
    for count in (1, 2):
        shorter, *numbers = clip.rsplit(maxsplit=count)
        if len(numbers) == count and all(map(_is_number, numbers)) and os.path.exists(base / shorter):
            first, last = int(numbers[0]), int(numbers[-1])
            return (
                Entry(base / shorter, label, first) if count == 1 else Entry(base / shorter, label, span=(first, last))
            )
    return Entry(base / clip, label)


def as_listed(video: Video, entry: Entry) -> Video:
    """Returns the frames of an open video that belong to the clip of a list.

    Raises:
        ClipError: the video has another number of frames than the list says, or ends before the last of them.
    """
    if entry.frames not in (None, video.frames):
        raise ClipError(f"{entry.path}: the list gives it {entry.frames} frames, and it has {video.frames}")
    if entry.span is None:
        return video
    first, last = entry.span
    if last > video.frames:
        raise ClipError(f"{entry.path}: the list gives it the frames {first} to {last}, and it has {video.frames}")
    return PartOfVideo(video, first - 1, last)


def write_list(path: Path, entries: Iterable[Entry], root: Path) -> Path:
    """Writes a list as :func:`read_list` reads it, its paths relative to ``root``, whole or not at all."""
    with replacing(path, "the list of clips") as partial, partial.open("w", encoding="utf-8", newline="") as file:
        for entry in entries:
            numbers = entry.span or (() if entry.frames is None else (entry.frames,))
            file.write(" ".join([entry.path.relative_to(root).as_posix(), *map(str, numbers), f"{entry.label}\n"]))
    return path


def check_entries(entries: Iterable[Entry], where: str | Path, is_known: Callable[[Path], bool]) -> None:
    """Checks that every clip of a list is there and can be read by its ending, before the first is opened.

    Args:
        entries: of the list ``where``. is_known: tells whether a file can be read by its ending.

    Raises:
        ClipError: some are missing or of another kind. The message counts them and names the first ones.
    """
    folders: dict[str, dict[str, bool]] = {}
    missing, other, total = [], [], 0
    for entry in entries:
        total += 1
        parent, name = os.path.split(entry.path)
        if parent not in folders:
            folders[parent] = _scan(parent)
        is_folder = folders[parent].get(name)
        if is_folder is None and os.path.exists(entry.path):  # some systems ignore the case of names
            is_folder = os.path.isdir(entry.path)
        if is_folder is None:
            missing.append(entry.path)
        elif not is_folder and not is_known(entry.path):
            other.append(entry.path)
    for paths, what in ((missing, "missing: no such file or folder"), (other, "files of a kind that is not read")):
        if paths:
            named = ", ".join(map(str, paths[:5])) + (", ..." if len(paths) > 5 else "")
            raise ClipError(f"{len(paths)} of {total} clips in {where} are {what}: {named}")


def _scan(folder: str) -> dict[str, bool]:
    """Returns name -> whether it is a folder, of everything in a folder: one call for thousands of clips."""
    try:
        with os.scandir(folder or ".") as found:
            return {item.name: item.is_dir() for item in found if not item.is_symlink()}
    except (OSError, ValueError):
        return {}
