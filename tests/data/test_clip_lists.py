"""Lists and label files as other programs write them: read as they are meant, or refused with the line."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alt.data.check import check_clip
from alt.data.clip_lists import write_labels, write_list
from alt.data.clips import ClipError, ClipFiles, Entry, read_labels, read_list
from alt.data.video import Video

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


def test_comments_and_clips_that_look_like_them(tmp_path: Path) -> None:
    """Kind: HMDB-51's "#20_Rhythm_clap" was left out of a list without a word."""
    text = "# clips\n#\n# 3 of 4 0\n#20_Rhythm_clap.avi 1\n#of yesterday\na.avi 0\n"
    (tmp_path / "list.txt").write_text(text)
    found = read_list(tmp_path / "list.txt")
    assert [(entry.path.name, entry.label) for entry in found] == [("#20_Rhythm_clap.avi", 1), ("a.avi", 0)]
    clip(tmp_path / "#b.npy")
    (tmp_path / "list.txt").write_text("# clips\n#b.npy\n#c.npy\n")
    assert [entry.path.name for entry in read_list(tmp_path / "list.txt", labelled=False)] == ["#b.npy"]


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


def frames_folder(path: Path, count: int) -> None:
    """Pictures 00001.png and on, as programs that cut videos into frames number them; each shows its number."""
    path.mkdir()
    for number in range(1, count + 1):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path / f"{number:05d}.png")


def numbers_of(video: Video) -> list[int]:
    return video.read_all()[:, 0, 0, 0].tolist()


def test_first_and_last_frame_of_a_clip(tmp_path: Path) -> None:
    """The Mini sets' form: ``path start end label``, counted from 1, with spaces or semicolons."""
    frames_folder(tmp_path / "a", 9)
    frames_folder(tmp_path / "b c", 4)
    frames_folder(tmp_path / "d 2 3", 2)
    (tmp_path / "list.txt").write_text("a 1 9 0\na 4 6 1\nb c;2;2;1\nd 2 3 0\na 2 3 lifting cup\n")
    entries = read_list(tmp_path / "list.txt", names=NAMES)
    assert [(e.path.name, e.span, e.frames, e.label) for e in entries] == [
        ("a", (1, 9), None, 0),
        ("a", (4, 6), None, 1),
        ("b c", (2, 2), None, 1),
        ("d 2 3", None, None, 0),
        ("a", (2, 3), None, 0),
    ]
    write_labels(tmp_path / "labels.csv", NAMES)
    files = ClipFiles(tmp_path / "list.txt", tmp_path / "labels.csv")
    assert [numbers_of(files.video(i)) for i in range(4)] == [list(range(1, 10)), [4, 5, 6], [2], [1, 2]]
    assert files.video(1).read([2, 0]).shape == (2, 3, 8, 8)
    assert files.video(1).read([2, 0])[:, 0, 0, 0].tolist() == [6, 4]
    with pytest.raises(ValueError, match="expected numbers of frames from 0 to 2, got 3"):
        files.video(1).read([3])
    (short,) = files.describe(3)  # frames of a folder that do not belong to its clip do not count
    assert short.startswith("2 of 5 clips have fewer than 3 frames")
    assert files.names_below(tmp_path) == ["a 1 9", "a 4 6", "b c 2 2", "d 2 3", "a 2 3"]
    assert read_list(write_list(tmp_path / "again.txt", entries, tmp_path)) == entries


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("a 0 3 1", "line 1: the first and last frame are expected, counted from 1, got 0 and 3"),
        ("a 3 2 1", "line 1: the first and last frame are expected, counted from 1, got 3 and 2"),
        ("a 2 4 1", r"a: the list gives it the frames 2 to 4, and it has 3"),
    ],
)
def test_frames_that_a_clip_has_not(tmp_path: Path, line: str, says: str) -> None:
    frames_folder(tmp_path / "a", 3)
    (tmp_path / "list.txt").write_text(f"{line}\n")
    with pytest.raises(ClipError, match=says):
        ClipFiles(tmp_path / "list.txt").video(0)


def test_damage_outside_of_the_span_is_told_by_the_check(tmp_path: Path) -> None:
    frames_folder(tmp_path / "a", 3)
    entry = Entry(tmp_path / "a", 0, span=(1, 4))
    assert check_clip(entry).problem == "the list gives it the frames 1 to 4, and it has 3"
    assert check_clip(entry._replace(span=(1, 2))) == (tmp_path / "a", 3, None)


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
