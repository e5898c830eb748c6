"""The cache of frames: bit for bit what reading without it gives, whatever happens to clips, entries and disk."""

from __future__ import annotations

import errno
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("av")

from alt.data import cache_folder, clip_identity, frame_cache
from alt.data.clip_views import ClipViews
from alt.data.clips import ClipError, ClipFiles, open_video, write_clip
from alt.data.frame_cache import FrameCache
from alt.data.video_files import VideoFile
from alt.errors import UserError
from alt.train.config import load_config
from alt.train.data import ClipData
from alt.train.sampler import SampleIndex

from .encoded import encode
from .test_video_files import KINDS, rotten

SPARSE = {"g": "12", "bf": "3"}
QUICK = [kind for kind in KINDS if kind[0] in ("no-key-frames.mkv", "transport.ts")]
SLOW = [pytest.param(*kind, marks=pytest.mark.slow) for kind in KINDS if kind not in QUICK]


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clips that a test has just written are taken for old ones."""
    monkeypatch.setattr(clip_identity, "_SETTLED", -60.0)


def pictures(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 24, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def read(path: Path, places: list[int], cache: FrameCache | None = None) -> torch.Tensor:
    with open_video(path) if cache is None else cache.open(path) as video:
        return video.read(places)


def refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on no clip is opened."""

    def fail(path: Path) -> Any:
        raise AssertionError(f"{path} was opened")

    monkeypatch.setattr(frame_cache, "open_video", fail)


def entries(cache: FrameCache) -> list[Path]:
    return sorted(path for path in cache.entries.folder.glob("*/*/*") if not path.name.startswith("."))


@pytest.mark.parametrize(("name", "codec", "options"), QUICK + SLOW)
def test_frames_of_videos_are_those_of_the_file(tmp_path: Path, name: str, codec: str, options: dict[str, str]) -> None:
    path = encode(tmp_path / name, codec, 40, options)
    caches = [FrameCache(tmp_path / f"cache-{whole}", 1, whole=whole) for whole in (False, True)]
    for trial in range(6):  # each finds some of its frames kept, and others not
        wanted = random.Random(trial).choices(range(40), k=6)
        plain = read(path, wanted)
        for cache in caches:
            assert torch.equal(read(path, wanted, cache), plain)


@pytest.mark.parametrize("kind", ["frames", "frames.zip"])
def test_frames_of_pictures_are_kept_too(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import zipfile

    write_clip(tmp_path / "frames", pictures(9))
    with zipfile.ZipFile(tmp_path / "frames.zip", "w") as archive:
        for path in (tmp_path / "frames").iterdir():
            archive.write(path, path.name)
    cache = FrameCache(tmp_path / "cache", 1)
    assert torch.equal(read(tmp_path / kind, [8, 2, 2], cache), pictures(9)[[8, 2, 2]])
    refuse(monkeypatch)
    assert torch.equal(read(tmp_path / kind, [2, 8], cache), pictures(9)[[2, 8]])


def test_what_is_read_where_it_lies_is_not_kept(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.npy", pictures(3))
    cache = FrameCache(tmp_path / "cache", 1)
    assert torch.equal(read(tmp_path / "a.npy", [1], cache), pictures(3)[1:2])
    assert entries(cache) == []
    assert cache.describe() == []


def test_a_known_clip_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sparse reads keep their frames, training keeps the video; number, rate and frames then come from the folder."""
    path, wanted = encode(tmp_path / "a.mp4", "libx264", 40, SPARSE), [3, 17, 30]
    rate, found = open_video(path).fps, read(path, wanted)
    for whole, others in ((False, wanted), (True, [0, 39])):
        cache = FrameCache(tmp_path / f"cache-{whole}", 1, whole=whole)
        read(path, wanted, cache)
        with monkeypatch.context() as patch:
            refuse(patch)
            with cache.open(path) as video:
                assert (video.frames, video.fps) == (40, rate)
                assert torch.equal(video.read(wanted), found)
                assert len(video.read(others)) == len(others)
        assert len(entries(cache)) == 1
        (line,) = cache.describe()
        assert line.startswith(f"{3 + len(others)} frames came from the cache, 3 were decoded; {cache.entries.folder} ")


def test_a_changed_clip_is_read_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one of the same size and time, which a copy that keeps times may have; and its old entry is removed."""
    path, cache = tmp_path / "a.zip", FrameCache(tmp_path / "cache", 1)

    def write(frames: torch.Tensor) -> None:
        import zipfile

        with zipfile.ZipFile(path, "w") as archive:
            for i, frame in enumerate(frames.permute(0, 2, 3, 1).numpy()):
                from PIL import Image

                with archive.open(zipfile.ZipInfo(f"{i}.bmp"), "w") as member:
                    Image.fromarray(frame).save(member, "BMP")

    write(pictures(4))
    read(path, [1, 2], cache)
    before = path.stat()
    write(pictures(4).flip(0))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert torch.equal(read(path, [1, 2], cache), pictures(4).flip(0)[[1, 2]])
    assert len(entries(cache)) == 1

    first = clip_identity.identify(path)
    monkeypatch.setattr(clip_identity, "describe_readers", lambda: "another version")
    second = clip_identity.identify(path)
    assert first is not None
    assert second is not None
    assert first.clip == second.clip
    assert first.state != second.state
    monkeypatch.setattr(clip_identity, "_SETTLED", 60.0)  # a file that still changes is not kept
    write(pictures(4))
    assert torch.equal(read(path, [1, 2], cache), pictures(4)[[1, 2]])
    assert [path.name[:32] for path in entries(cache)] == [first.state]


def test_a_clip_that_changes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old frames of the folder and new ones of the file never stand in one clip."""
    path, cache = tmp_path / "frames", FrameCache(tmp_path / "cache", 1)
    write_clip(path, pictures(4))
    read(path, [0, 1], cache)
    count = len(entries(cache))

    def change(path: Path) -> Any:
        monkeypatch.setattr(frame_cache, "open_video", open_video)
        write_clip(path, pictures(4).flip(0))
        return open_video(path)

    monkeypatch.setattr(frame_cache, "open_video", change)
    assert torch.equal(read(path, [0, 1, 2], cache), pictures(4).flip(0)[:3])
    assert len(entries(cache)) == count


@pytest.mark.parametrize("damage", ["head", "index", "pixels", "cut", "empty"])
def test_a_damaged_entry_is_decoded_again(tmp_path: Path, damage: str) -> None:
    path, cache = encode(tmp_path / "a.mp4", "libx264", 12), FrameCache(tmp_path / "cache", 1)
    found = read(path, [2, 5], cache)
    (entry,) = entries(cache)
    whole = entry.read_bytes()
    data = bytearray(whole)
    if damage in ("head", "index", "pixels"):
        data[{"head": 12, "index": 40, "pixels": -1}[damage]] ^= 1
    entry.write_bytes(data[:100] if damage == "cut" else b"" if damage == "empty" else data)
    assert torch.equal(read(path, [2, 5], cache), found)
    assert cache.describe()[1] == "1 damaged entries of the cache were decoded again"
    assert torch.equal(read(path, [2, 5], cache), found)
    assert len(cache.describe()) == 2
    assert cache.describe()[0].startswith("2 frames came from the cache, 4 were decoded; ")


def test_a_process_killed_while_it_writes_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, cache = encode(tmp_path / "a.mp4", "libx264", 12), FrameCache(tmp_path / "cache", 1)
    found = read(path, [4], cache)
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(os, "replace", lambda *names: os._exit(9))  # all bytes are there, the name is not
        read(path, [4, 5, 6], cache)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    (left,) = cache.entries.folder.glob("*/*/.*.tmp")
    assert torch.equal(read(path, [4, 5, 6], cache), read(path, [4, 5, 6]))
    assert torch.equal(read(path, [4], cache), found)
    FrameCache(tmp_path / "cache", 1)
    assert left.exists()  # its process may still be writing
    os.utime(left, (0, 0))
    FrameCache(tmp_path / "cache", 1)
    assert not left.exists()


def test_a_full_disk_ends_keeping_and_not_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, cache = encode(tmp_path / "a.mp4", "libx264", 12), FrameCache(tmp_path / "cache", 1)

    def fail(*names: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.warns(
            UserWarning, match=r"data\.frame_cache: nothing more is kept in .* \(No space left on device\)"
        ):
            assert torch.equal(read(path, [4], cache), read(path, [4]))
    assert torch.equal(read(path, [5], cache), read(path, [5]))  # and says nothing
    assert entries(cache) == []
    assert "could not be written" in cache.describe()[0]
    assert list(cache.entries.folder.glob("*/*/.*")) == []


def test_the_limit_holds_for_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, cache = encode(tmp_path / "a.mp4", "libx264", 12), FrameCache(tmp_path / "cache", 1)
    entry = 3 * 64 * 80 + 44
    cache.entries.limit = cache.entries.used + 2 * entry
    for number in range(4):
        assert torch.equal(read(path, [number], cache), read(path, [number]))
    assert len(entries(cache)) == 2
    assert cache.describe()[0].endswith("and is full")
    whole = FrameCache(tmp_path / "cache", 1, whole=True)
    assert whole.entries.used == sum(file.stat().st_size for file in (tmp_path / "cache").rglob("*") if file.is_file())
    whole.entries.limit = cache.entries.limit
    assert torch.equal(read(path, [7], whole), read(path, [7]))  # no room for the video: read as without a cache
    assert len(entries(whole)) == 2

    monkeypatch.setattr(cache_folder, "_RECOUNT", 0)
    free, other = FrameCache(tmp_path / "other", 1), FrameCache(tmp_path / "other", 1)
    read(path, [0], free)
    read(path, [1], other)
    assert other.entries.used == free.entries.used + entry  # it sees what the first one wrote
    monkeypatch.setattr(cache_folder, "_SPARE", 1 << 60)  # a disk that is nearly full
    read(path, [2], free)
    assert len(entries(free)) == 2


def test_the_folder_may_be_deleted_at_any_time(tmp_path: Path) -> None:
    path, cache = encode(tmp_path / "a.mp4", "libx264", 12), FrameCache(tmp_path / "cache", 1)
    read(path, [1], cache)
    video = cache.open(path)
    shutil.rmtree(tmp_path / "cache")
    assert torch.equal(video.read([1]), read(path, [1]))
    video.close()
    assert len(entries(cache)) == 1
    again = FrameCache(tmp_path / "cache", 1)
    assert again.entries.used == cache.entries.used  # it is a cache still, and counts as what is there


def test_damaged_videos_are_not_kept(tmp_path: Path) -> None:
    path, cache = rotten(tmp_path), FrameCache(tmp_path / "cache", 1, whole=True)
    with pytest.raises(ClipError) as plain:
        read(path, [31])
    with pytest.raises(ClipError) as cached:
        read(path, [31], cache)
    assert str(cached.value) == str(plain.value)
    assert torch.equal(read(path, [3], cache), read(path, [3]))  # a whole frame of it is read as ever
    sparse = FrameCache(tmp_path / "sparse", 1)
    with pytest.raises(ClipError):
        read(path, [3, 31], sparse)
    assert entries(cache) == entries(sparse) == []


def test_reads_that_times_mislead_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, cache = encode(tmp_path / "a.mp4", "libx264", 12), FrameCache(tmp_path / "cache", 1)
    monkeypatch.setattr(VideoFile, "_read_by_time", lambda self, places: None)
    assert torch.equal(read(path, [4], cache), read(path, [4]))
    assert entries(cache) == []


def test_folders_that_cannot_be_caches_are_refused(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").touch()
    with pytest.raises(UserError, match=r"^data\.frame_cache: expected an empty folder or a cache, and .*videos holds"):
        FrameCache(tmp_path / "videos", 1)
    with pytest.raises(UserError, match=r"^data\.frame_cache: .*a\.mp4 cannot be written \(File exists\)\.$"):
        FrameCache(tmp_path / "videos" / "a.mp4", 1)
    with pytest.raises(UserError, match=r"^data\.frame_cache is for clips in files, and data\.kind is entity_world"):
        load_config("entity-world-cpu", ["data.frame_cache=somewhere"])


def test_a_run_gets_the_same_clips(tmp_path: Path) -> None:
    """Training clips with augmentation over two epochs, and test views, from two loading processes."""
    for i in range(3):
        encode(tmp_path / f"{i}.mp4", "libx264", 30, SPARSE)
    (tmp_path / "list.txt").write_text("0.mp4 0\n1.mp4 1\n2.mp4 0\n")
    (tmp_path / "labels.csv").write_text("id,name\n0,a\n1,b\n")
    lists = [f"data.root={tmp_path}", "data.train_list=list.txt", "data.val_list=list.txt", "data.size=32"]
    lists += ["data.resize=40", "model.frames=4", "data.batch_size=3"]
    plain = ClipData(load_config("alt-b16-k400-8f", lists))
    for _ in range(2):
        cached = ClipData(load_config("alt-b16-k400-8f", [*lists, f"data.frame_cache={tmp_path / 'cache'}"]))
        order: Any = [SampleIndex(clip, epoch) for epoch in (0, 1) for clip in range(3)]
        loader = torch.utils.data.DataLoader(cached.train_set, sampler=order, batch_size=1, num_workers=2)
        for index, batch in zip(order, loader, strict=True):
            assert torch.equal(batch[0][0], plain.train_set[index][0])
        assert cached.val_set is not None
        assert plain.val_set is not None
        for number in range(3):
            assert torch.equal(cached.val_set[number][0], plain.val_set[number][0])
        lines = cached.describe_clips()
    assert lines[0].startswith("list.txt: 24 frames came from the cache, 0 were decoded; ")  # of two processes
    views = [
        ClipViews(ClipFiles(tmp_path / "list.txt", cache=cache), 4, 32, crops=3, clips=2, stride=2)[1][0]
        for cache in (None, FrameCache(tmp_path / "cache", 1))
    ]
    assert torch.equal(*views)
