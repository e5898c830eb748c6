"""Clips on disk: what is written is read back; what cannot be used is told in one sentence."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from alt.data import videos as module
from alt.data.clip_views import ClipViews
from alt.data.clips import (
    ClipError,
    ClipFiles,
    as_frames,
    read_clip,
    read_labels,
    read_list,
    register_decoder,
    write_clip,
    write_clips,
)
from alt.data.pixels import normalise
from alt.data.sampling import take_frames
from alt.entityworld.world import EntityWorldDataset, World, write_to_disk


def video(frames: int = 6, height: int = 10, width: int = 14) -> torch.Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.randint(0, 256, (frames, 3, height, width), generator=generator, dtype=torch.uint8)


# --- the synthetic set ---


@pytest.mark.parametrize("form", ["frames", "npy", "npz", "pt"])
def test_the_world_written_to_disk_is_the_world_in_memory(tmp_path: Path, form: str) -> None:
    world = World("tiny")
    split = world.split("seen-test").subset(range(7))
    listed = write_to_disk(world, split, tmp_path, form)
    disk = ClipViews(ClipFiles(listed, tmp_path / "labels.csv"), frames=4, size=24)
    memory = EntityWorldDataset(world, split)
    assert len(disk) == len(memory) == 7
    assert disk.class_names == memory.class_names
    assert torch.equal(disk.labels, memory.labels)
    for i in range(7):
        (a, la), (b, lb) = disk[i], memory[i]
        assert torch.equal(a, b)
        assert la == lb


# --- single clips ---


@pytest.mark.parametrize("name", ["clip", "clip.npy", "clip.npz", "clip.pt"])
def test_round_trip(tmp_path: Path, name: str) -> None:
    frames = video(12)
    write_clip(tmp_path / name, frames)
    assert torch.equal(read_clip(tmp_path / name), frames)


def test_channels_last_and_floats(tmp_path: Path) -> None:
    frames = video()
    np.save(tmp_path / "a.npy", frames.permute(0, 2, 3, 1).numpy())
    torch.save(frames.double() / 255, tmp_path / "b.pt")
    assert torch.equal(read_clip(tmp_path / "a.npy"), frames)
    assert torch.equal(read_clip(tmp_path / "b.pt"), frames)
    three = video(3, 3, 3)  # ambiguous: frames first, then channels
    assert torch.equal(as_frames(three), three)


def test_frames_are_in_natural_order(tmp_path: Path) -> None:
    """frame2 before frame10, in folders and archives; other files are left alone."""
    frames = video(12)
    for i, frame in enumerate(frames.permute(0, 2, 3, 1).numpy()):
        Image.fromarray(frame).save(tmp_path / f"frame{i}.png")
    (tmp_path / "notes.txt").write_text("nothing")
    assert torch.equal(read_clip(tmp_path), frames)
    archive = tmp_path / "clip.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in tmp_path.glob("*.png"):
            file.write(path, f"inner/{path.name}")
        file.writestr("inner/readme.txt", "nothing")
    assert torch.equal(read_clip(archive), frames)


def test_grey_pictures_become_rgb(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 5), 77, np.uint8)).save(tmp_path / "0.png")
    assert read_clip(tmp_path).shape == (1, 3, 4, 5)
    assert int(read_clip(tmp_path).unique()) == 77


def test_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_DECODERS", {})
    path = tmp_path / "a.gif"
    path.write_bytes(b"x")
    with pytest.raises(ClipError, match=r"a\.gif: a folder of pictures or a file of"):
        read_clip(path)
    register_decoder(".GIF", lambda _: video(3))
    assert torch.equal(read_clip(path), video(3))
    with pytest.raises(ValueError, match="suffix"):
        register_decoder("gif", lambda _: video(3))


def _mixed_sizes(path: Path) -> Path:
    for i, size in enumerate((4, 5)):
        Image.new("RGB", (size, 4)).save(path / f"{i}.png")
    return path


def _saved(path: Path, array: np.ndarray) -> Path:
    np.save(path / "a.npy", array)
    return path / "a.npy"


def _bytes(path: Path, name: str, content: bytes = b"not what it says") -> Path:
    (path / name).write_bytes(content)
    return path if name.endswith("png") else path / name


def _two_arrays(path: Path) -> Path:
    np.savez(path / "a.npz", a=np.zeros(2), b=np.zeros(2))
    return path / "a.npz"


def _pickled(path: Path) -> Path:
    torch.save({"frames": torch.zeros(2)}, path / "a.pt")
    return path / "a.pt"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: p / "missing", "no such file or folder"),
        (lambda p: p, "no pictures in it"),
        (_mixed_sizes, "frames of one size are expected, 1.png is 4 x 5, not 4 x 4"),
        (lambda p: _bytes(p, "0.png"), "not a readable picture"),
        (lambda p: _bytes(p, "a.npy"), "not a readable array file"),
        (lambda p: _bytes(p, "a.npy", b""), "not a readable array file"),
        (lambda p: _bytes(p, "a.npz"), "not a readable array file"),
        (lambda p: _bytes(p, "a.pt"), "not a file of tensors"),
        (lambda p: _bytes(p, "a.zip"), "not a readable archive"),
        (lambda p: _saved(p, np.array([{"a": 1}], dtype=object)), "not a readable array file"),
        (_two_arrays, "one array is expected in it, got 2"),
        (_pickled, "one tensor is expected in it, got dict"),
        (lambda p: _saved(p, np.zeros((4, 8, 8), np.uint8)), "frames [F, 3, H, W] or [F, H, W, 3] are expected"),
        (lambda p: _saved(p, np.zeros((4, 1, 8, 8), np.uint8)), "got [4, 1, 8, 8]"),
        (lambda p: _saved(p, np.zeros((0, 3, 8, 8), np.uint8)), "no frames in it"),
        (lambda p: _saved(p, np.zeros((2, 3, 0, 8), np.uint8)), "got [2, 3, 0, 8]"),
        (lambda p: _saved(p, np.full((2, 3, 4, 4), 200.0)), "floating-point frames lie in [0, 1], got 200 to 200"),
        (lambda p: _saved(p, np.full((2, 3, 4, 4), np.nan)), "floating-point frames lie in [0, 1]"),
        (lambda p: _saved(p, np.zeros((2, 3, 4, 4), np.int64)), "uint8 or floating-point frames are expected"),
    ],
)
def test_what_cannot_be_used_is_one_sentence_with_the_path(tmp_path: Path, make, says: str) -> None:
    path = make(tmp_path)
    with pytest.raises(ClipError) as caught:
        read_clip(path)
    text = str(caught.value)
    assert says in text
    assert str(path) in text
    assert "\n" not in text


# --- lists ---


def test_lists(tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text('id,name\n1,"lifting, high"\n0,lifting\n2,high lifting\n', encoding="utf-8")
    names = read_labels(labels)
    assert names == ["lifting", "lifting, high", "high lifting"]
    listed = tmp_path / "list.txt"
    listed.write_text("# a comment\n\na b.npy 1\nc.npy high lifting\n/d/e.npy lifting\n", encoding="utf-8")
    entries = read_list(listed, names=names)
    assert [(str(e.path), e.label) for e in entries] == [
        (str(tmp_path / "a b.npy"), 1),
        (str(tmp_path / "c.npy"), 2),
        ("/d/e.npy", 0),
    ]
    assert read_list(listed, root=tmp_path / "x", names=names)[0].path == tmp_path / "x" / "a b.npy"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "no clips listed"),
        (
            "a.npy walking\n",
            "line 1: 'path label' is expected, the label a number or one of the 2 class names",
        ),
        ("a.npy 0\nb.npy 7\n", "line 2: a label below 2 is expected, got 7"),
    ],
)
def test_bad_lists(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "list.txt").write_text(content)
    with pytest.raises(ClipError, match=says):
        read_list(tmp_path / "list.txt", names=["running", "jumping"])
    with pytest.raises(ClipError, match=r"not a readable list file \(No such file or directory\)"):
        read_list(tmp_path / "none.txt")


@pytest.mark.parametrize("content", ["", "id,name\n", "a,b\n0,x\n", "id,name\nzero,x\n", "id,name\n0,x\n2,y\n"])
def test_bad_label_files(tmp_path: Path, content: str) -> None:
    (tmp_path / "labels.csv").write_text(content)
    with pytest.raises(ClipError, match=r"labels\.csv[:,] "):
        read_labels(tmp_path / "labels.csv")
    with pytest.raises(ClipError, match="not a readable label file"):
        read_labels(tmp_path / "none.csv")


def test_write_clips_checks_its_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="form"):
        write_clips(tmp_path, video()[None], [0], ["a"], "mp4")
    with pytest.raises(ValueError, match="labels"):
        write_clips(tmp_path, video()[None], [0, 1], ["a"])
    with pytest.raises(ValueError, match="path"):
        write_clip(tmp_path / "a.gif", video())


# --- the data set ---


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    return write_clips(tmp_path, torch.stack([video(20, 12, 16), video(20, 12, 16).flip(0)]), [1, 0], ["a", "b"], "npy")


def test_whole_videos_labels_and_names(listed: Path) -> None:
    data = ClipFiles(listed, listed.parent / "labels.csv")
    assert len(data) == 2
    assert torch.equal(data.video(0).read_all(), video(20, 12, 16))
    assert data.labels.tolist() == [1, 0]
    assert data.class_names == ["a", "b"]
    assert ClipFiles(listed).class_names == ["0", "1"]


def test_root_is_the_folder_of_list_labels_and_clips(listed: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """One meaning of root, for training, evaluation and prediction; absolute paths stay what they are."""
    rooted = ClipFiles("list.txt", "labels.csv", tmp_path)
    assert torch.equal(rooted.video(1).read_all(), ClipFiles(listed).video(1).read_all())
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "some.txt").write_text("clips/000001.npy 0\n")
    for data in (ClipFiles("lists/some.txt", "labels.csv", tmp_path), ClipFiles(lists / "some.txt", root=tmp_path)):
        assert torch.equal(data.video(0).read_all(), rooted.video(1).read_all())
    with pytest.raises(ClipError, match="no such file"):
        ClipFiles(lists / "some.txt").video(0)  # without a root they are beside the list
    with pytest.raises(ClipError, match="none: there is no such folder"):
        ClipFiles("list.txt", root=tmp_path / "none")


def test_views(listed: Path) -> None:
    files = ClipFiles(listed)
    single, label = ClipViews(files, frames=4, size=8)[0]
    assert single.shape == (4, 3, 8, 8)
    assert label == 1
    assert ClipViews(files, frames=4, size=8, crops=3, clips=2)[0][0].shape == (6, 4, 3, 8, 8)
    untouched = ClipViews(files, frames=20, size=12)[0][0]  # short side as it should be: the centre, not resized
    assert torch.equal(untouched, normalise(video(20, 12, 16)[..., 2:14]))
    assert not torch.equal(ClipViews(files, frames=20, size=12, resize=14)[0][0], untouched)


def test_short_clips_repeat_frames_in_order_and_are_named(tmp_path: Path) -> None:
    """One rule in training, evaluation and prediction, counted across loading processes."""
    write_clip(tmp_path / "short.npy", video(3, 8, 8))
    write_clip(tmp_path / "long.npy", video(6, 8, 8))
    (tmp_path / "list.txt").write_text("short.npy 0\nlong.npy 0\nshort.npy 0\n")
    files = ClipFiles(tmp_path / "list.txt")
    assert files.describe(4) == []  # nothing was read yet
    expected = video(3, 8, 8)[[0, 1, 1, 2]]
    assert torch.equal(take_frames(files.video(0), 4, None), expected)
    taken = take_frames(files.video(0), 4, seed=5)
    places = [int((video(3, 8, 8) == frame).flatten(1).all(1).nonzero()[0]) for frame in taken]
    assert places == sorted(places)
    loader = torch.utils.data.DataLoader(ClipViews(files, frames=4, size=8), batch_size=3, num_workers=1)
    (batch,) = [clips for clips, _ in loader]
    assert torch.equal(batch[0], normalise(expected))
    (said,) = files.describe(4)
    assert said.startswith("2 of 3 clips have fewer than 4 frames, which repeat in order: ")
    assert said.endswith(f"{tmp_path / 'short.npy'}, {tmp_path / 'short.npy'}")


def test_a_loading_process_names_the_damaged_clip(listed: Path) -> None:
    (listed.parent / "clips" / "000001.npy").write_bytes(b"x")
    loader = torch.utils.data.DataLoader(ClipViews(ClipFiles(listed), frames=4, size=8), num_workers=1)
    with pytest.raises(ClipError) as caught:
        list(loader)
    assert str(caught.value).startswith(str(listed.parent / "clips" / "000001.npy"))
    assert "\n" not in str(caught.value)
