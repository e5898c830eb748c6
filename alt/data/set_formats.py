"""Data sets in the files in which they are published: one reader per format, all with one result.

======== ============================================================================================================
list     ``train.txt``, ``test.txt`` (``train1.txt`` for a split): lines ``path label``, ``path frames label`` or ``path
         start end label``, as X-CLIP, mmaction2 and the authors of the Mini sets write them, and ``labels.csv``
ucf101   ``trainlist01.txt``, ``testlist01.txt`` and ``classInd.txt``; clips in folders by class
hmdb51   ``brush_hair_test_split1.txt``, one file per class and split; clips in folders by class
kinetics ``train.csv``, ``val.csv`` with label, youtube_id, time_start, time_end; clips anywhere below the root
ssv2     ``train.json``, ``validation.json``, ``labels.json`` of Something-Something; clips ``ID.webm``
charades ``Charades_v1_train.csv``, ``Charades_v1_test.csv``, ``Charades_v1_classes.txt``: several labels per clip
moments  ``trainingSet.csv``, ``validationSet.csv`` and ``moments_categories.txt`` of Moments in Time, clips below
         ``training`` and ``validation``
uav      UAV-Human: subject and action stand in the names of the clips, splits 1 and 2 are the published ones
         (cross-subject v1 and v2), and ``labels.csv`` names the actions
folders  a folder per class, below ``train`` and ``test``
======== ============================================================================================================

A part is "train" or "test". Lists are read as they are meant, or refused with their line.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from alt.files import read_json

from .action_names import name_to_text
from .clip_lists import Entry, SetList, read_labels, read_list, read_text_file
from .new_classes import find_named
from .picture_videos import natural_key
from .video import ClipError
from .videos import readable_suffixes

__all__ = ["FORMATS", "SetFolders", "read_list_of_set", "read_set"]


class SetFolders(NamedTuple):
    """root: folder of the clips. lists: folder of the lists. skip_missing: leave out clips that are not there."""

    root: Path
    lists: Path
    skip_missing: bool = False


def read_set(
    form: str, folders: SetFolders, part: str, split: int = 1, classes: Sequence[str] | None = None
) -> SetList:
    """Reads one part of a data set.

    Args:
        form: of :data:`FORMATS`. folders: of the set. part: "train" or "test". split: official split, from 1.
        classes: names of the classes to keep, which are numbered anew in the order of the set; None: all.

    Raises:
        ClipError: a file is missing or not of the format, a class is not in the set, or no clip of the list is there.
    """
    for folder in (folders.root, folders.lists):
        if not folder.is_dir():
            raise ClipError(f"{folder}: there is no such folder")
    found = FORMATS[form](folders, part, split)
    return _finish(found if classes is None else _keep_classes(found, classes), folders)


def read_list_of_set(form: str, folders: SetFolders, path: Path, classes: Sequence[str] | None = None) -> SetList:
    """Reads a list ``path label`` that others made of the clips of a set, such as a published few-shot draw.

    A label is the number of a class of the set, or of ``classes`` in the order of the set. A clip is found by its path,
    or by its name wherever it is below the root: the lists of ViFi-CLIP expect all clips in one folder. Where the set's
    own lists (split 1) have the clip, it must be of the same class there.

    Args:
        form, folders, classes: as in :func:`read_set`. path: of the list.

    Raises:
        ClipError: a file cannot be read, or a clip has another class than in the set's own lists.
    """
    own = _read_own_lists(form, folders)
    names = own.names if classes is None else _keep_classes(own, classes).names
    known, index, entries = {entry.path.stem: entry for entry in own.entries}, None, []
    for entry in read_list(path, folders.root, names):
        there = known.get(entry.path.stem)
        if there is not None:
            wanted = own.names[there.label]
            if names[entry.label] != wanted:
                raise ClipError(
                    f"{path}: {entry.path.name} is of the class {wanted!r} in the set's own lists, and of "
                    f"{names[entry.label]!r} here; are its labels the numbers of this set's classes?"
                )
            entry = entry._replace(path=there.path)
        elif not entry.path.exists():
            index = _index(folders.root) if index is None else index
            entry = entry._replace(path=index.get(entry.path.stem, entry.path))
        entries.append(entry)
    return _finish(SetList(entries, names, path), folders)


def _read_own_lists(form: str, folders: SetFolders) -> SetList:
    """Returns all clips of a set's split 1. One of its two lists may be missing."""
    parts: list[SetList] = []
    for part in ("train", "test"):
        try:
            parts.append(read_set(form, folders._replace(skip_missing=False), part))
        except ClipError:
            if part == "test" and not parts:
                raise
    if any(entry.labels is not None for found in parts for entry in found.entries):
        raise ClipError(f"{parts[0].where}: its clips have several labels each; lists of others give one")
    return parts[0]._replace(entries=[entry for found in parts for entry in found.entries])


def _finish(found: SetList, folders: SetFolders) -> SetList:
    """Returns a list without the clips that are not there, if they may be left out."""
    if not found.entries:
        raise ClipError(f"{found.where}: no clips listed in it")
    if not folders.skip_missing:
        return found
    there = [entry for entry in found.entries if entry.path.exists()]
    if not there:
        raise ClipError(f"{found.where}: none of its {len(found.entries)} clips is below {folders.root}")
    return found._replace(entries=there, missing=len(found.entries) - len(there))


def _keep_classes(found: SetList, classes: Sequence[str]) -> SetList:
    if any(entry.labels is not None for entry in found.entries):
        raise ClipError(f"{found.where}: a set with one label per clip is expected, to keep some of its classes")
    try:
        kept = find_named(found.names, classes)
    except ValueError as error:
        raise ClipError(f"{found.where}: {error}") from None
    numbers = {old: new for new, old in enumerate(kept)}
    entries = [entry._replace(label=numbers[entry.label]) for entry in found.entries if entry.label in numbers]
    return found._replace(entries=entries, names=[found.names[number] for number in kept])


# --- the formats ---


def _list(folders: SetFolders, part: str, split: int) -> SetList:
    names = read_labels(folders.lists / "labels.csv")
    where = _first_of(folders.lists, [f"{part}{split}.txt", *(f"{name}.txt" for name in _names_of(part))])
    return SetList(read_list(where, folders.root, names), names, where)


def _ucf101(folders: SetFolders, part: str, split: int) -> SetList:
    index = folders.lists / "classInd.txt"
    classes: list[str] = []
    for number, line in _lines(index):
        words = line.split()
        if len(words) != 2 or words[0] != str(len(classes) + 1):
            raise ClipError(f"{index}, line {number}: '{len(classes) + 1} Name' is expected, got {line[:80]!r}")
        classes.append(words[1])
    numbers = {name: i for i, name in enumerate(classes)}
    where, entries = folders.lists / f"{part}list{split:02d}.txt", []
    for number, line in _lines(where):
        words = line.rsplit(maxsplit=1)
        clip = words[0] if len(words) == 2 and words[1].isdigit() else line
        folder = clip.split("/")[0]
        if folder not in numbers or "/" not in clip:
            raise ClipError(f"{where}, line {number}: 'Class/clip.avi' of {index.name} is expected, got {line[:80]!r}")
        if clip != line and int(words[1]) != numbers[folder] + 1:
            raise ClipError(f"{where}, line {number}: {folder} has the number {numbers[folder] + 1}, got {words[1]}")
        entries.append(Entry(folders.root / clip, numbers[folder]))
    return SetList(entries, [name_to_text(name) for name in classes], where)


def _hmdb51(folders: SetFolders, part: str, split: int) -> SetList:
    ending, wanted = f"_test_split{split}.txt", {"train": "1", "test": "2"}[part]
    files = {path.name.removesuffix(ending): path for path in folders.lists.iterdir() if path.name.endswith(ending)}
    if not files:
        raise ClipError(f"{folders.lists}: files 'class{ending}' are expected, there are none")
    entries, classes = [], sorted(files)  # by class, as lists of others number them: climb comes before climb_stairs
    for label, name in enumerate(classes):
        path = files[name]
        for number, line in _lines(path):
            words = line.rsplit(maxsplit=1)
            if len(words) != 2 or words[1] not in ("0", "1", "2"):
                raise ClipError(f"{path}, line {number}: 'clip.avi 0', 1 or 2 is expected, got {line[:80]!r}")
            if words[1] == wanted:
                entries.append(Entry(folders.root / name / words[0], label))
    return SetList(entries, [name_to_text(name) for name in classes], folders.lists)


def _kinetics(folders: SetFolders, part: str, split: int) -> SetList:
    where = _first_of(folders.lists, [f"{name}.csv" for name in _names_of(part)])
    training = _first_of(folders.lists, ["train.csv", where.name])
    columns = ("label", "youtube_id", "time_start", "time_end")
    names = sorted({row[0] for row in _rows(training, columns)})
    numbers, index = {name: i for i, name in enumerate(names)}, _index(folders.root)
    entries = []
    for label, video, start, end in _rows(where, columns):
        if label not in numbers:
            raise ClipError(f"{where}: the class {label[:80]!r} is not in {training.name}")
        stem = f"{video}_{int(float(start)):06d}_{int(float(end)):06d}" if start and end else video
        path = index.get(stem) or index.get(video) or folders.root / f"{stem}.mp4"
        entries.append(Entry(path, numbers[label]))
    return SetList(entries, names, where)


def _ssv2(folders: SetFolders, part: str, split: int) -> SetList:
    labels = _first_of(folders.lists, ["labels.json", "something-something-v2-labels.json"])
    stems = {"train": ["train"], "test": ["validation", "val"]}[part]
    where = _first_of(folders.lists, [f"{p}{s}.json" for s in stems for p in ("", "something-something-v2-")])
    numbers, clips = _json(labels, dict), _json(where, list)
    names = sorted(numbers, key=lambda name: int(numbers[name]))
    if [int(numbers[name]) for name in names] != list(range(len(names))):
        raise ClipError(f"{labels}: every number from 0 up once is expected")
    index, entries = _index(folders.root), []
    for number, clip in enumerate(clips):
        template = str(clip.get("template", "")).replace("[", "").replace("]", "") if isinstance(clip, dict) else ""
        if template not in numbers or "id" not in clip:
            raise ClipError(
                f"{where}, clip {number}: an id and a template of {labels.name} are expected, got {clip!r:.80}"
            )
        entries.append(Entry(index.get(str(clip["id"]), folders.root / f"{clip['id']}.webm"), int(numbers[template])))
    return SetList(entries, names, where)


def _charades(folders: SetFolders, part: str, split: int) -> SetList:
    classes = folders.lists / "Charades_v1_classes.txt"
    names = [line.split(maxsplit=1)[-1] for _, line in _lines(classes)]
    codes = {line.split()[0]: i for i, (_, line) in enumerate(_lines(classes))}
    where, entries = folders.lists / f"Charades_v1_{part}.csv", []
    index = _index(folders.root)
    for video, actions in _rows(where, ("id", "actions")):
        found = [action.split()[0] for action in actions.split(";") if action.strip()]
        unknown = next((code for code in found if code not in codes), None)
        if unknown is not None:
            raise ClipError(f"{where}: {video} has the class {unknown[:40]!r}, which is not in {classes.name}")
        labels = tuple(sorted({codes[code] for code in found}))
        path = index.get(video, folders.root / f"{video}.mp4")
        entries.append(Entry(path, labels[0] if labels else -1, None, labels))
    return SetList(entries, names, where)


def _moments(folders: SetFolders, part: str, split: int) -> SetList:
    categories = folders.lists / "moments_categories.txt"
    names = [line.rsplit(",", 1)[0] if line.rsplit(",", 1)[-1].isdigit() else line for _, line in _lines(categories)]
    numbers, stem = {name: i for i, name in enumerate(names)}, {"train": "training", "test": "validation"}[part]
    where, entries = folders.lists / f"{stem}Set.csv", []
    for number, line in _lines(where):
        words = next(csv.reader([line]))
        if len(words) < 2 or words[1] not in numbers:
            raise ClipError(
                f"{where}, line {number}: a clip and a class of {categories.name} are expected, got {line[:80]!r}"
            )
        entries.append(Entry(folders.root / stem / words[0], numbers[words[1]]))
    return SetList(entries, [name.replace("+", " ") for name in names], where)


_UAV_NAME = re.compile(r"P(\d{3})S\d{2}G\d{2}B\d{2}H\d{2}UC\d{6}LC\d{6}A(\d{3})R\d_\d+")
_UAV_TESTED = {
    1: {1, 3, 4, 9, 22, 23, 24, 31, 41, 54, 58, 60, 66, 72, 74, 75, *range(91, 98), 99, 101, 104, 107, 108, 109, 113},
    2: {1, 2, 7, 9, 13, 15, 17, 23, 25, 27, 28, 33, 34, 41, 42, 48, 50, 51, 53, 55, 58, 65, 68, 76, 82, 85, 90, 98, 105,
        116},
}  # fmt: skip
"""Subjects of the test clips, by split: 30 of 119 (github.com/sutdcv/UAV-Human, at commit 01ce7233f2e5)."""


def _uav(folders: SetFolders, part: str, split: int) -> SetList:
    if split not in _UAV_TESTED:
        raise ClipError(f"{folders.root}: UAV-Human has the splits 1 and 2, got {split}")
    names, entries = read_labels(folders.lists / "labels.csv"), []
    for stem, path in sorted(_index(folders.root).items()):
        named = _UAV_NAME.fullmatch(stem)
        if named is None or int(named[2]) >= len(names):
            raise ClipError(
                f"{path}: a name as P070S01G10B00H10UC102000LC092000A031R0_09131758 is expected, with an action below "
                f"{len(names)}"
            )
        if (int(named[1]) in _UAV_TESTED[split]) == (part == "test"):
            entries.append(Entry(path, int(named[2])))
    return SetList(entries, names, folders.root)


def _folders(folders: SetFolders, part: str, split: int) -> SetList:
    where = _first_of(folders.root, _names_of(part))
    names = sorted(path.name for path in where.iterdir() if path.is_dir() and not path.name.startswith("."))
    entries = [
        Entry(clip, label)
        for label, name in enumerate(names)
        for clip in sorted((where / name).iterdir(), key=lambda path: natural_key(path.name))
        if clip.is_dir() or clip.suffix.lower() in readable_suffixes()
    ]
    return SetList(entries, [name_to_text(name) for name in names], where)


FORMATS: dict[str, Callable[[SetFolders, str, int], SetList]] = {
    "list": _list,
    "ucf101": _ucf101,
    "hmdb51": _hmdb51,
    "kinetics": _kinetics,
    "ssv2": _ssv2,
    "charades": _charades,
    "moments": _moments,
    "uav": _uav,
    "folders": _folders,
}


# --- what they share ---


def _names_of(part: str) -> list[str]:
    return ["train"] if part == "train" else ["test", "val", "validate", "validation"]


def _first_of(folder: Path, names: Sequence[str]) -> Path:
    found = next((folder / name for name in names if (folder / name).exists()), None)
    if found is None:
        raise ClipError(f"{folder}: {' or '.join(dict.fromkeys(names))} is expected, there is none")
    return found


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(read_text_file(path, "list file").split("\n"), 1):
        if line.strip():
            yield number, line.strip()


def _rows(path: Path, columns: Iterable[str]) -> list[list[str]]:
    """Returns the values of some columns of a CSV, of every row."""
    try:
        rows = list(csv.DictReader(io.StringIO(read_text_file(path, "list file"), newline=""), strict=True))
    except csv.Error as error:
        raise ClipError(f"{path}: not a readable list file ({error})") from None
    missing = [name for name in columns if rows and name not in rows[0]]
    if missing:
        raise ClipError(f"{path}: a column {missing[0]} is expected, there are {', '.join(map(str, rows[0]))[:80]}")
    return [[(row[name] or "").strip() for name in columns] for row in rows]


def _json(path: Path, kind: type) -> Any:
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise ClipError(str(error)) from None
    if not isinstance(found, kind):
        raise ClipError(f"{path}: a {'group of numbers' if kind is dict else 'list of clips'} is expected in it")
    return found


def _index(root: Path) -> dict[str, Path]:
    """Returns name without ending -> path, of all clips below a folder."""
    found = {}
    for folder, _, files in os.walk(root):
        for name in files:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in readable_suffixes():
                found[stem] = Path(folder) / name
    return found
