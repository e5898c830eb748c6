"""Published data sets in their own files: what comes is (path, label) and names as text; wrong lines are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alt.data.action_names import name_to_text, read_action_names
from alt.data.clips import ClipError, ClipFiles
from alt.data.set_formats import SetFolders, read_set


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def folders(path: Path, **files: str) -> SetFolders:
    """root and lists; files: lists by name, their dots written as two underscores."""
    (path / "clips").mkdir()
    (path / "lists").mkdir()
    for name, text in files.items():
        (path / "lists" / name.replace("__", ".")).write_text(text)
    return SetFolders(path / "clips", path / "lists")


def found(where: SetFolders, form: str, part: str, split: int = 1) -> list[tuple[str, int]]:
    entries = read_set(form, where, part, split).entries
    return [(str(entry.path.relative_to(where.root)), entry.label) for entry in entries]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ApplyEyeMakeup", "apply eye makeup"),
        ("YoYo", "yo yo"),
        ("brush_hair", "brush hair"),
        ("BMXRiding", "bmx riding"),
        ("Playing Guitar (DIY)", "Playing Guitar (DIY)"),
        ("fencing", "fencing"),
    ],
)
def test_names_become_text(name: str, text: str) -> None:
    assert name_to_text(name) == text


def test_ucf101(tmp_path: Path) -> None:
    where = folders(
        tmp_path,
        classInd__txt="1 ApplyEyeMakeup\n2 YoYo\n",
        trainlist02__txt="ApplyEyeMakeup/v_a_g08_c01.avi 1\nYoYo/v_b.avi 2\n",
        testlist02__txt="YoYo/v_c.avi\r\n",
    )
    assert found(where, "ucf101", "train", 2) == [("ApplyEyeMakeup/v_a_g08_c01.avi", 0), ("YoYo/v_b.avi", 1)]
    assert found(where, "ucf101", "test", 2) == [("YoYo/v_c.avi", 1)]  # its list gives no number
    assert read_set("ucf101", where, "test", 2).names == ["apply eye makeup", "yo yo"]
    with pytest.raises(ClipError, match=r"testlist03\.txt: not a readable list file"):
        read_set("ucf101", where, "test", 3)
    (where.lists / "trainlist02.txt").write_text("YoYo/v_b.avi 1\n")
    with pytest.raises(ClipError, match=r"trainlist02\.txt, line 1: YoYo has the number 2, got 1"):
        read_set("ucf101", where, "train", 2)


def test_hmdb51(tmp_path: Path) -> None:
    where = folders(
        tmp_path,
        brush_hair_test_split1__txt="a.avi 1 \nb.avi 0 \nc.avi 2 \n",
        cartwheel_test_split1__txt="d.avi 2 \ne f.avi 1 \n",
        cartwheel_test_split2__txt="d.avi 1 \n",
    )
    assert found(where, "hmdb51", "train") == [("brush_hair/a.avi", 0), ("cartwheel/e f.avi", 1)]
    assert found(where, "hmdb51", "test") == [("brush_hair/c.avi", 0), ("cartwheel/d.avi", 1)]
    assert read_set("hmdb51", where, "test").names == ["brush hair", "cartwheel"]
    with pytest.raises(ClipError, match=r"files 'class_test_split3\.txt' are expected, there are none"):
        read_set("hmdb51", where, "train", 3)


def test_hmdb51_numbers_its_classes_as_published_lists_do(tmp_path: Path) -> None:
    """By the names of the classes. The names of its files have another order: climb_stairs_test before climb_test."""
    names = ["climb", "climb_stairs", "kick", "kick_ball", "sword", "sword_exercise"]
    where = folders(tmp_path, **{f"{name}_test_split1__txt": f"{name}.avi 1 \n" for name in names})
    assert found(where, "hmdb51", "train") == [(f"{name}/{name}.avi", i) for i, name in enumerate(names)]
    assert read_set("hmdb51", where, "train").names[:2] == ["climb", "climb stairs"]


def test_kinetics_finds_clips_wherever_they_are_and_counts_those_that_are_gone(tmp_path: Path) -> None:
    head = "label,youtube_id,time_start,time_end,split\n"
    where = folders(
        tmp_path,
        train__csv=head + 'yoga,-aA1,3,13,train\n"zumba, fast",bbb,0,10,train\n',
        val__csv=head + '"zumba, fast",ccc,7,17,val\nyoga,gone,1,11,val\n',
    )
    touch(where.root, "val/zumba/ccc_000007_000017.mkv", "train/-aA1_000003_000013.mp4", "train/zumba/bbb.webm")
    assert found(where, "kinetics", "train") == [("train/-aA1_000003_000013.mp4", 0), ("train/zumba/bbb.webm", 1)]
    assert found(where, "kinetics", "test") == [
        ("val/zumba/ccc_000007_000017.mkv", 1),
        ("gone_000001_000011.mp4", 0),
    ]
    assert read_set("kinetics", where, "test").names == ["yoga", "zumba, fast"]
    with pytest.raises(ClipError, match=r"1 of 2 clips in .*val\.csv are missing: .*gone_000001_000011\.mp4"):
        ClipFiles(read_set("kinetics", where, "test"))
    files = ClipFiles(read_set("kinetics", where._replace(skip_missing=True), "test"))
    assert files.labels.tolist() == [1]
    assert files.describe(8) == ["1 of the list's 2 clips are not there and were left out"]


def test_something_something_has_placeholders(tmp_path: Path) -> None:
    labels = {"Holding something next to something": "1", "Dropping something": "0"}
    clips = [
        {"id": "78687", "label": "holding potato next to jar", "template": "Holding [something] next to [something]"},
        {"id": "4", "label": "dropping a card", "template": "Dropping [something]", "placeholders": ["a card"]},
    ]
    where = folders(tmp_path, labels__json=json.dumps(labels), validation__json=json.dumps(clips))
    touch(where.root, "4.webm", "20bn/78687.webm")
    assert found(where, "ssv2", "test") == [("20bn/78687.webm", 1), ("4.webm", 0)]
    assert read_set("ssv2", where, "test").names == ["Dropping something", "Holding something next to something"]
    (where.lists / "train.json").write_text(json.dumps([{"id": 1, "template": "Eating [something]"}]))
    with pytest.raises(ClipError, match=r"train\.json, clip 0: an id and a template of labels\.json are expected"):
        read_set("ssv2", where, "train")


def test_some_classes_of_a_set(tmp_path: Path) -> None:
    """MiniSSv2 is Something-Something's own lists with the 87 classes that ship."""
    names = read_action_names("ssv2")
    templates = [name.replace("something", "[something]") for name in names]
    where = folders(
        tmp_path,
        labels__json=json.dumps({name: str(i) for i, name in enumerate(names)}),
        validation__json=json.dumps([{"id": str(i), "template": name} for i, name in enumerate(templates)]),
    )
    kept = read_action_names("minissv2")
    part = read_set("ssv2", where, "test", classes=kept)
    assert part.names == kept
    assert [names[int(entry.path.stem)] for entry in part.entries] == kept
    assert [entry.label for entry in part.entries] == list(range(87))
    touch(where.root, "0.webm")  # of a kept class, as 2.webm is not
    few = read_set("ssv2", where._replace(skip_missing=True), "test", classes=kept)
    assert (len(few.entries), few.missing) == (1, 86)
    with pytest.raises(ClipError, match=r"expected 2 of the data set's 174, 1 of them are not among these: Eating"):
        read_set("ssv2", where, "test", classes=["Eating", kept[0]])


def test_charades_has_several_labels_per_clip(tmp_path: Path) -> None:
    where = folders(
        tmp_path,
        Charades_v1_classes__txt="c000 Holding some clothes\nc001 Putting clothes down\nc002 Taking some clothes\n",
        Charades_v1_test__csv="id,subject,actions,length\nAB1,x,c002 0.0 3.1;c000 2.0 9.0;c002 4.0 5.0,30\nCD2,y,,12\n",
    )
    touch(where.root, "AB1.mp4", "CD2.mp4")
    files = ClipFiles(read_set("charades", where, "test"))
    assert files.targets is not None
    assert files.targets.tolist() == [[1, 0, 1], [0, 0, 0]]
    assert files.labels.tolist() == [0, -1]
    assert files.class_names[2] == "Taking some clothes"


def test_moments_in_time(tmp_path: Path) -> None:
    where = folders(
        tmp_path,
        moments_categories__txt="clapping,0\nadult+female+singing,1\n",
        trainingSet__csv="clapping/yt-a.mp4,clapping,3,0\n",
        validationSet__csv='"adult+female+singing/b, c.mp4",adult+female+singing,4,1\n',
    )
    assert found(where, "moments", "train") == [("training/clapping/yt-a.mp4", 0)]
    assert found(where, "moments", "test") == [("validation/adult+female+singing/b, c.mp4", 1)]
    assert read_set("moments", where, "test").names == ["clapping", "adult female singing"]
    (where.lists / "moments_categories.txt").write_text("clapping\n")  # without numbers
    assert found(where, "moments", "train") == [("training/clapping/yt-a.mp4", 0)]
    with pytest.raises(ClipError, match=r"validationSet\.csv, line 1: a clip and a class of moments_categories\.txt"):
        read_set("moments", where, "test")


def test_uav_human_splits_by_subject(tmp_path: Path) -> None:
    where = folders(tmp_path, labels__csv="id,name\n0,drink\n1,salute\n")
    names = {n: f"P{n:03d}S01G10B00H10UC102000LC092000A{n % 2:03d}R0_09131758.avi" for n in range(119)}
    touch(where.root, *names.values())
    for split, some in ((1, {1, 31, 97, 113}), (2, {2, 27, 116})):
        train, test = (found(where, "uav", part, split) for part in ("train", "test"))
        assert (len(train), len(test)) == (89, 30)
        assert {(names[n], n % 2) for n in some} <= set(test)
        assert not set(train) & set(test)
    with pytest.raises(ClipError, match="has the splits 1 and 2, got 3"):
        read_set("uav", where, "test", 3)
    touch(where.root, "P070.avi")
    with pytest.raises(ClipError, match=r"P070\.avi: a name as P070S01.* is expected, with an action below 2"):
        read_set("uav", where, "test")


def test_lists_of_x_clip_and_folders_by_class(tmp_path: Path) -> None:
    where = folders(
        tmp_path,
        labels__csv="id,name\n0,abseiling\n1,yoga\n",
        train__txt="a b.mp4 1\nframes 120 0\n",
        test2__txt="c.mp4 0\n",
    )
    touch(
        where.root, "frames/0.png", "val/BMXRiding/10.mp4", "val/BMXRiding/9.mp4", "val/yoga/x.avi", "val/yoga/no.txt"
    )
    assert found(where, "list", "train") == [("a b.mp4", 1), ("frames", 0)]
    assert [entry.frames for entry in read_set("list", where, "train").entries] == [None, 120]
    assert found(where, "list", "test", 2) == [("c.mp4", 0)]
    by_class = read_set("folders", where, "test")
    assert [(entry.path.name, entry.label) for entry in by_class.entries] == [("9.mp4", 0), ("10.mp4", 0), ("x.avi", 1)]
    assert by_class.names == ["bmx riding", "yoga"]


@pytest.mark.parametrize(
    ("form", "files", "says"),
    [
        ("ucf101", {}, r"classInd\.txt: not a readable list file"),
        ("ucf101", {"classInd__txt": "0 A\n"}, "line 1: '1 Name' is expected, got '0 A'"),
        ("kinetics", {}, r"test\.csv or val\.csv or validate\.csv or validation\.csv is expected, there is none"),
        ("kinetics", {"val__csv": "a,b\n1,2\n"}, "a column label is expected, there are a, b"),
        ("ssv2", {"labels__json": "[]", "val__json": "[]"}, "a group of numbers is expected in it"),
        ("charades", {}, r"Charades_v1_classes\.txt: not a readable list file"),
        ("folders", {}, "test or val or validate or validation is expected, there is none"),
        ("list", {}, "not a readable label file"),
    ],
)
def test_what_is_not_of_the_format_is_one_sentence(tmp_path: Path, form: str, files: dict[str, str], says: str) -> None:
    with pytest.raises(ClipError, match=says) as caught:
        read_set(form, folders(tmp_path, **files), "test")
    assert "\n" not in str(caught.value)
    with pytest.raises(ClipError, match="none: there is no such folder"):
        read_set(form, SetFolders(tmp_path / "none", tmp_path), "test")
