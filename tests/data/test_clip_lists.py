"""Lists and label files as other programs write them: read as they are meant, or refused with the line."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from alt.data.clips import ClipError, ClipFiles, read_labels, read_list

NAMES = ["lifting cup", "pushing box"]


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffid,name\n0,lifting cup\n1,pushing box\n",
        "ID,Name\n0,lifting cup\n1,pushing box\n",
        "id, name\r\n0, lifting cup\r\n1, pushing box\r\n\r\n",
        'name , Id\n"pushing box",1\nlifting cup ,0\n',
        'id,name,clips\n1,pushing box,3\n0,"lifting cup",4\n',
    ],
)
def test_label_files_of_other_programs(tmp_path: Path, text: str) -> None:
    """Kind: byte order marks and other spellings of the header."""
    (tmp_path / "labels.csv").write_text(text, encoding="utf-8", newline="")
    assert read_labels(tmp_path / "labels.csv") == NAMES


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("id,name\n0,lifting, high\n1,b\n", "row 2: 2 columns are expected, got 3; put quotation marks"),
        ("id,name\n0\n", "row 2: 2 columns are expected, got 1"),
        ("id;name\n0;a\n", "columns id .* expected, got 'id;name'"),
        ("label,name\n0,a\n", "columns id .* expected, got 'label, name'"),
        ("0,a\n1,b\n", "columns id .* expected, got '0, a'"),
        ("id,name\n0,a\n0,b\n", "row 3: the number 0 is there a second time"),
        ("id,name\n0,a\n1,a \n", "row 3: the name 'a' is also in row 2"),
        ("id,name\n0,a\n1,\n", "row 3: a name is expected"),
        ("id,name\n1_0,a\n", "a number is expected in the column id, got '1_0'"),
        ('id,name\n0,"a\n', "not a readable label file"),
    ],
)
def test_label_files_that_could_be_misread(tmp_path: Path, text: str, says: str) -> None:
    """Kind: a name with a comma lost what followed it, and a number that was there twice lost a class."""
    (tmp_path / "labels.csv").write_text(text, encoding="utf-8")
    with pytest.raises(ClipError, match=says):
        read_labels(tmp_path / "labels.csv")


def test_text_files_of_other_codes_and_kinds(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("id,name\n0,a\n", encoding="utf-16")
    with pytest.raises(ClipError, match="not a text in UTF-8"):
        read_labels(tmp_path / "labels.csv")
    os.mkfifo(tmp_path / "list.txt")
    with pytest.raises(ClipError, match="a device or a pipe"):
        read_list(tmp_path / "list.txt")


def test_lists_with_a_mark_tabs_and_line_ends_of_windows(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes("\ufeffa b.npy 0\r\nc.npy\tpushing box\r\nd\u2028e.npy  1\n".encode())
    found = read_list(tmp_path / "list.txt", names=NAMES)
    assert [(str(e.path.relative_to(tmp_path)), e.label) for e in found] == [
        ("a b.npy", 0),
        ("c.npy", 1),
        ("d\u2028e.npy", 1),
    ]
    (tmp_path / "list.txt").write_text("a.npy \u00b2\n")  # a superscript is a digit to Python
    with pytest.raises(ClipError, match="'path label' is expected"):
        read_list(tmp_path / "list.txt")


def clip(path: Path, frames: int = 2) -> None:
    np.save(path, np.zeros((frames, 8, 8, 3), np.uint8))


def test_a_frame_count_per_line_is_told_from_a_space_in_the_path(tmp_path: Path) -> None:
    """Kind: lists of three columns. The file that is there says which of the two is meant."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b 7").mkdir()
    clip(tmp_path / "c.npy")
    (tmp_path / "list.txt").write_text("a 120 0\nb 7 1\nc.npy 2 lifting cup\nc.npy 3 0\n")
    found = read_list(tmp_path / "list.txt", names=NAMES)
    assert [(e.path.name, e.label, e.frames) for e in found] == [
        ("a", 0, 120),
        ("b 7", 1, None),
        ("c.npy", 0, 2),
        ("c.npy", 0, 3),
    ]
    (tmp_path / "list.txt").write_text("c.npy 2 0\nc.npy 3 0\n")
    files = ClipFiles(tmp_path / "list.txt")
    assert files.video(0).frames == 2
    with pytest.raises(ClipError, match=r"c\.npy: the list gives it 3 frames, and it has 2"):
        files.video(1)


def test_missing_clips_are_all_told_before_the_first_is_read(tmp_path: Path) -> None:
    """Kind: a wrong entry was found when its clip was drawn, in the middle of a run, one at a time."""
    clip(tmp_path / "0.npy")
    (tmp_path / "link.npy").symlink_to(tmp_path / "0.npy")
    (tmp_path / "broken.npy").symlink_to(tmp_path / "none")
    lines = ["0.npy", "link.npy", "broken.npy", *(f"no/{i}.npy" for i in range(6)), str(tmp_path), "."]
    (tmp_path / "list.txt").write_text("".join(f"{line} 0\n" for line in lines))
    with pytest.raises(ClipError, match=r"^7 of 11 clips in .*list\.txt are missing: no such file or folder: ") as told:
        ClipFiles(tmp_path / "list.txt")
    assert str(tmp_path / "broken.npy") in str(told.value)
    assert str(told.value).endswith("no/3.npy, ...")
    (tmp_path / "film.xyz").write_bytes(b"x")
    (tmp_path / "list.txt").write_text("0.npy 0\nfilm.xyz 0\n")
    with pytest.raises(ClipError, match=r"^1 of 2 clips in .* are files of a kind that is not read: .*film\.xyz$"):
        ClipFiles(tmp_path / "list.txt")
