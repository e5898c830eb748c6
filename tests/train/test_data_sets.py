"""data.yaml: parts of sets, some of their classes, and lists that others made of their clips."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from alt.data.clip_lists import SetList
from alt.data.clips import ClipError
from alt.data.few_shot import few_shot_indices
from alt.errors import UserError
from alt.train.data_sets import read_named_set

CLASSES = ("Archery", "BabyCrawling", "YoYo")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """UCF-101's own files with three classes: groups 1 to 3 are tested, 4 to 9 trained on."""
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/classInd.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(CLASSES, 1)))
    clips = {group: [f"{name}/v_{name}_g{group:02d}_c01.avi" for name in CLASSES] for group in range(1, 10)}
    for clip in itertools.chain(*clips.values()):
        (tmp_path / "clips" / clip).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "clips" / clip).write_bytes(b"")
    test = [clip for group in (1, 2, 3) for clip in clips[group]]
    train = [f"{clip} {i}" for group in range(4, 10) for i, clip in enumerate(clips[group], 1)]
    (tmp_path / "lists/testlist01.txt").write_text("\n".join(test) + "\n")
    (tmp_path / "lists/trainlist01.txt").write_text("\n".join(train) + "\n")
    (tmp_path / "data.yaml").write_text(
        "ucf101: {format: ucf101, root: clips, lists: lists}\n"
        "two: {format: ucf101, root: clips, lists: lists, classes: two.txt}\n"
        "half: {format: ucf101, root: clips, lists: lists, missing: skip}\n"
    )
    (tmp_path / "two.txt").write_text("yo yo\narchery\n")
    return tmp_path


def read(home: Path, name: str, list_file: str) -> SetList:
    return read_named_set(home / "data.yaml", f"datasets/{name}", list_file)


def found(home: Path, name: str, list_file: str) -> list[tuple[str, int]]:
    entries = read(home, name, list_file).entries
    return [(entry.path.relative_to(home / "clips").as_posix(), entry.label) for entry in entries]


def test_a_published_few_shot_list_is_taken_as_it_is(home: Path) -> None:
    """ViFi-CLIP's lists name every clip as if all were in one folder."""
    lines = [f"v_{name}_g{group:02d}_c01.avi {i}" for i, name in enumerate(CLASSES) for group in (9, 4)]
    (home / "lists/train1_few_shot_2.txt").write_text("\n".join(lines) + "\n")
    listed = read(home, "ucf101", "train1_few_shot_2.txt")
    assert listed.names == ["archery", "baby crawling", "yo yo"]
    own = {entry.path.name: entry for entry in read(home, "ucf101", "train1").entries}
    assert listed.entries == [own[line.split()[0]] for line in lines]
    labels = torch.tensor([entry.label for entry in listed.entries])
    assert few_shot_indices(labels, 2) == list(range(6))  # data.shots=2 of the configuration takes all of them
    with pytest.raises(ValueError, match="expected 4 samples of every class, class 0 has 2"):
        few_shot_indices(labels, 4)
    (home / "lists/train1_few_shot_2.txt").write_text("\n".join(lines[:4]) + "\n")
    with pytest.raises(ClipError, match=r"v_BabyCrawling_g09_c01\.avi is of the class 'baby crawling' in the set's"):
        read(home, "two", "train1_few_shot_2.txt")  # whose classes have other numbers


def test_a_list_whose_numbers_are_of_other_classes_is_refused(home: Path) -> None:
    (home / "lists/shots.txt").write_text("v_Archery_g04_c01.avi 0\nv_YoYo_g04_c01.avi 1\n")
    with pytest.raises(ClipError, match=r"shots\.txt: v_YoYo_g04_c01\.avi is of the class 'yo yo' in the set's own"):
        read(home, "ucf101", "shots.txt")
    (home / "lists/shots.txt").write_text("v_Archery_g04_c01.avi 3\n")
    with pytest.raises(ClipError, match="line 1: a label below 3 is expected, got 3"):
        read(home, "ucf101", "shots.txt")


def test_clips_that_no_list_of_the_set_has_are_found_by_name(home: Path) -> None:
    (home / "clips/more/v_new.avi").parent.mkdir()
    (home / "clips/more/v_new.avi").write_bytes(b"")
    (home / "lists/mine.txt").write_text("v_new.mp4 1\nYoYo/v_YoYo_g01_c01.avi 2\nv_gone.avi 0\n")
    assert found(home, "ucf101", "mine.txt") == [
        ("more/v_new.avi", 1),
        ("YoYo/v_YoYo_g01_c01.avi", 2),
        ("v_gone.avi", 0),
    ]
    half = read(home, "half", "mine.txt")
    assert (len(half.entries), half.missing) == (2, 1)
    (home / "lists/trainlist01.txt").unlink()  # one of the set's own lists is enough
    assert len(found(home, "ucf101", "mine.txt")) == 3
    (home / "lists/testlist01.txt").unlink()
    with pytest.raises(ClipError, match=r"testlist01\.txt: not a readable list file"):
        read(home, "ucf101", "mine.txt")


def test_some_classes(home: Path) -> None:
    assert found(home, "two", "test1")[:2] == [("Archery/v_Archery_g01_c01.avi", 0), ("YoYo/v_YoYo_g01_c01.avi", 1)]
    assert read(home, "two", "train1").names == ["archery", "yo yo"]
    (home / "two.txt").write_text("yo yo\nrowing\n")
    with pytest.raises(ClipError, match=r"expected 2 of the data set's 3, 1 of them are not among these: rowing"):
        read(home, "two", "test1")
    (home / "two.txt").unlink()
    with pytest.raises(UserError, match=r"data\.sets: classes: '.*two\.txt' is neither a file nor one of hmdb51"):
        read(home, "two", "test1")


@pytest.mark.parametrize("name", ["trainlist01", "few.txt"])
def test_neither_a_part_nor_a_file(home: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"train, test or val with a split, such as test1, or a file in the folder of"):
        read(home, "ucf101", name)
