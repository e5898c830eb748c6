"""One file that says where data sets are, and in which format: ``data.yaml``.

    ucf101: {format: ucf101, root: videos/UCF-101, lists: lists/ucfTrainTestlist}
    hmdb51: {format: hmdb51, root: videos/hmdb51, lists: lists/testTrainMulti_7030_splits}
    k400:   {format: kinetics, root: videos/k400, lists: lists/k400, missing: skip}
    minissv2: {format: ssv2, root: videos/ssv2, lists: lists/ssv2, classes: minissv2}

Folders are relative to the file. :mod:`alt.data.set_formats` describes the formats.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from alt.data.action_names import ACTION_SETS, read_names
from alt.data.clip_lists import SetList
from alt.data.set_formats import SetFolders, read_list_of_set, read_set
from alt.errors import UserError, one_line
from alt.files import describe_error, read_text
from alt.validation import Text, checked, from_mapping, nearest

from .parse import MAX_TEXT, read_yaml

__all__ = ["SetSection", "read_named_set", "read_sets"]


@checked
class SetSection:
    """A data set. root: folder of its clips. lists: folder of its lists, None: the same. missing: a clip of a list
    that is not there is an "error", or "skip" leaves it out (videos of Kinetics vanish). classes: names of the classes
    to keep, of a list that ships or a file (:func:`alt.data.action_names.read_names`); None: all."""

    root: Text
    format: Literal["list", "ucf101", "hmdb51", "kinetics", "ssv2", "charades", "moments", "uav", "folders"] = "list"
    lists: Text | None = None
    missing: Literal["error", "skip"] = "error"
    classes: Text | None = None


def read_sets(path: str | Path) -> dict[str, SetSection]:
    """Reads a file on data sets, by their names.

    Raises:
        UserError: it cannot be read, is not YAML, or a setting in it is wrong.
    """
    path = Path(path)
    try:
        tree = read_yaml(read_text(path, MAX_TEXT), str(path))
    except OSError as error:
        raise UserError(f"data.sets: {path} cannot be read ({describe_error(error)}).") from None
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"data.sets: {error}.") from None
    if not isinstance(tree, Mapping) or not all(isinstance(value, Mapping) for value in tree.values()):
        raise UserError(f"data.sets: {path} must hold a group of settings (root, format, lists) for every data set.")
    try:
        return {str(name): from_mapping(SetSection, dict(value), f"{name}.") for name, value in tree.items()}
    except ValueError as error:
        raise UserError(f"data.sets: {path}: {error}") from None


def read_named_set(path: str | Path, root: str | None, list_file: str) -> SetList:
    """Reads the part of a set that the configuration names.

    Args:
        path: of the file on data sets. root: its last part is the name of the set.
        list_file: "train.txt", "train2.txt", "test1.txt", "val.txt": the part and the split; any other name is a file
            in the folder of the set's lists, which others made (:func:`alt.data.set_formats.read_list_of_set`).

    Raises:
        UserError: the file has no such set, or the list is no part of one. ClipError: the set's own files are wrong.
    """
    sets = read_sets(path)
    name = Path(root or "").name
    if name not in sets:
        raise UserError(f"data.sets: {path} has no data set {name!r}; {nearest(name, list(sets))}")
    section, base = sets[name], Path(path).parent
    folders = SetFolders(base / section.root, base / (section.lists or section.root), section.missing == "skip")
    classes = None if section.classes is None else _read_classes(section.classes, base)
    part = re.fullmatch(r"(train|test|val)(\d*)(?:\.txt)?", list_file)
    if part is not None:
        return read_set(section.format, folders, "train" if part[1] == "train" else "test", int(part[2] or 1), classes)
    if not (folders.lists / list_file).is_file():
        raise UserError(
            "data: with data.sets a list is train, test or val with a split, such as test1, or a file in the folder of "
            f"the set's lists, {folders.lists}; got {list_file!r}."
        )
    return read_list_of_set(section.format, folders, folders.lists / list_file, classes)


def _read_classes(source: str, base: Path) -> list[str]:
    try:
        return read_names(source if source in ACTION_SETS else str(base / source))
    except (OSError, ValueError) as error:
        raise UserError(f"data.sets: classes: {one_line(error, 300)}.") from None
