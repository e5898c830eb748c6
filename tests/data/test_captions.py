"""Pictures with captions in the files that people have, and what is wrong with a file in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alt.data.captions import CaptionedPictures, find_captions, read_captions
from alt.data.video import ClipError

PAIRS = [("a/1.jpg", "a red cup, on a table"), ("a/2.jpg", "two boxes"), ("a/1.jpg", "one cup")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a").mkdir()
    for name in ("1", "2", "10"):
        (tmp_path / "a" / f"{name}.jpg").touch()
    return tmp_path


def expected(folder: Path) -> CaptionedPictures:
    files = (folder / "a/1.jpg", folder / "a/2.jpg")
    return CaptionedPictures(files, tuple(caption for _, caption in PAIRS), (0, 1, 0))


COCO = {
    "images": [{"id": 7, "file_name": "a/1.jpg"}, {"id": 3, "file_name": "a/2.jpg"}],
    "annotations": [{"image_id": 7 if "1" in name else 3, "caption": f"{text} "} for name, text in PAIRS],
}
SENTENCES = {"1.jpg": [{"raw": PAIRS[0][1]}, {"raw": PAIRS[2][1]}], "2.jpg": [{"raw": PAIRS[1][1]}]}
KARPATHY = {
    "images": [
        {"filename": "10.jpg", "filepath": "a", "split": "train", "sentences": [{"raw": "not read"}]},
        *({"filename": name, "filepath": "a", "split": "test", "sentences": raw} for name, raw in SENTENCES.items()),
    ]
}
FILES = {
    "captions.csv": "image,caption\n" + "".join(f'{name},"{text}"\n' for name, text in PAIRS),
    "open_clip.tsv": "filepath\ttitle\n" + "".join(f"{name}\t{text}\n" for name, text in PAIRS),
    "flickr.csv": "image_name| comment_number| comment\n" + "".join(f"{n}| 0| {text}\n" for n, text in PAIRS),
    "metadata.jsonl": "".join(json.dumps({"file_name": n, "text": text}) + "\n" for n, text in PAIRS),
    "captions_val2017.json": json.dumps(COCO),
}


@pytest.mark.parametrize("name", FILES)
def test_caption_files(folder: Path, name: str) -> None:
    file = folder / name
    file.write_text(FILES[name], encoding="utf-8")
    assert read_captions(file, folder) == expected(folder)
    if name in ("captions.csv", "metadata.jsonl"):
        assert find_captions(folder) == expected(folder)


def test_karpathys_splits_are_read_by_picture_and_only_their_test(folder: Path) -> None:
    (folder / "dataset_coco.json").write_text(json.dumps(KARPATHY))
    found = read_captions(folder / "dataset_coco.json", folder)
    assert found.files == expected(folder).files
    assert found.captions == (PAIRS[0][1], PAIRS[2][1], PAIRS[1][1])
    assert found.owners == (0, 0, 1)


def test_captions_beside_the_pictures(folder: Path) -> None:
    assert find_captions(folder) is None  # folders by class
    (folder / "a/1.txt").write_text("one\n\ntwo\n")
    (folder / "a/10.json").write_text(json.dumps({"caption": "ten", "url": "x"}))
    with pytest.raises(ClipError, match=r"2\.jpg: a caption is expected in a \.txt or \.json file of this name"):
        find_captions(folder)
    (folder / "a/2.txt").write_text("the second")
    found = find_captions(folder)
    assert found is not None
    assert [file.name for file in found.files] == ["1.jpg", "2.jpg", "10.jpg"]
    assert found.captions == ("one", "two", "the second", "ten")
    assert found.owners == (0, 0, 1, 2)


WRONG = {
    "a.csv": ("image,caption\na/1.jpg,a cup, red\n", r"a\.csv, row 2: 2 columns are expected, got 3; put quotation"),
    "b.csv": (
        "image,label\na/1.jpg,3\n",
        r"b\.csv, row 2: a path .* and a caption .* are expected, got 'image, label'",
    ),
    "c.csv": ("image,caption\na/3.jpg,a cup\n", r"c\.csv: the picture 'a/3\.jpg' is not in "),
    "d.csv": ("image,caption\n", r"d\.csv: no captions in it"),
    "e.csv": ("image,caption\na/1.jpg,\n", r"e\.csv, row 2: a path and a caption are expected, one is empty"),
    "f.json": ("{}", r"f\.json: 'images' with 'annotations' \(COCO\) or with 'sentences'"),
    "g.json": ("{", r"g\.json: not a readable caption file"),
    "h.jsonl": ("[1]\n", r"h\.jsonl, line 1: a path"),
    "i.json": (json.dumps({**COCO, "annotations": [{"image_id": 1, "caption": "x"}]}), r"i\.json: 'images' with"),
    "j.csv": (f"image,caption\n{'a' * 5000},a cup\n", r"j\.csv: the picture 'aaa"),
    "k.json": (json.dumps({**COCO, "annotations": [{"image_id": 7, "caption": None}]}), r"k\.json: 'images' with"),
    "l.csv": ("", r"l\.csv: no captions in it"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_one_sentence(folder: Path, name: str) -> None:
    text, message = WRONG[name]
    (folder / name).write_text(text)
    with pytest.raises(ClipError, match=message) as caught:
        read_captions(folder / name, folder)
    assert "\n" not in str(caught.value)
