"""Video files by frame number: every frame that comes is the one asked for, whatever the codec, rate or container."""

from __future__ import annotations

import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("av")

from alt.cli import build_app
from alt.data.check import check_clip, check_clips
from alt.data.clip_views import ClipViews
from alt.data.clips import ClipError, ClipFiles, Entry, open_video, read_clip
from alt.data.container_sizes import find_missing_bytes
from alt.data.sampling import sample_test
from alt.data.video_files import VideoFile
from alt.files import LIMIT_VARIABLE

from .encoded import encode, encode_audio, numbers, turn

H264 = {"g": "12", "bf": "3"}
OPEN = {"x264-params": "keyint=12:bframes=3:open-gop=1:scenecut=0"}
REFRESH = {"x264-params": "keyint=24:intra-refresh=1"}
KINDS: list[tuple[str, str, dict[str, str]]] = [
    ("a.mp4", "libx264", H264),
    ("one-key-frame.mov", "libx264", {"g": "250", "bf": "3"}),
    ("open-groups.mp4", "libx264", OPEN),
    ("no-key-frames.mkv", "libx264", REFRESH),  # pictures are refreshed bit by bit
    ("b-frames.avi", "mpeg4", {"g": "12", "bf": "2"}),
    ("a.webm", "libvpx-vp9", {"g": "12", "deadline": "realtime", "cpu-used": "8"}),
    ("a.mkv", "libx265", {"x265-params": "keyint=12:bframes=3:log-level=none"}),
    ("av1.mp4", "libsvtav1", {"g": "12", "preset": "11", "svtav1-params": "lp=1"}),
    ("program.mpg", "mpeg2video", {"g": "12", "bf": "2"}),
    ("transport.ts", "libx264", H264),
]


@pytest.mark.parametrize(("name", "codec", "options"), KINDS, ids=[name for name, _, _ in KINDS])
def test_every_frame_is_the_one_asked_for(tmp_path: Path, name: str, codec: str, options: dict[str, str]) -> None:
    path = encode(tmp_path / name, codec, 40, options, rate=30)
    with open_video(path) as video:
        assert video.frames == 40
        assert video.fps == pytest.approx(30, rel=0.01)
        for trial in range(8):
            wanted = random.Random(trial).sample(range(40), (1, 2, 8)[trial % 3])  # in any order
            assert numbers(video.read(wanted)) == wanted
        assert numbers(video.read([7, 7, 3])) == [7, 7, 3]
        assert numbers(video.read(sample_test(40, 8))) == sample_test(40, 8).tolist()
    assert numbers(read_clip(path)) == list(range(40))


@pytest.mark.parametrize(("count", "rate"), [(1, 25), (2, 50), (250, 25)])
def test_lengths_and_rates(tmp_path: Path, count: int, rate: int) -> None:
    with open_video(encode(tmp_path / "a.mp4", "libx264", count, H264, rate=rate)) as video:
        assert (video.frames, video.fps) == (count, rate)
        for wanted in ([0], [count - 1], sample_test(count, 32).tolist()):
            assert numbers(video.read(wanted)) == wanted
        with pytest.raises(
            ValueError, match=rf"indices: expected numbers of frames from 0 to {count - 1}, got {count}"
        ):
            video.read([count])


def test_variable_rates_number_frames_and_not_times(tmp_path: Path) -> None:
    times = [0, 10, 20, 500, 510, 2000, 2001, 2100, 9000, 9040]
    for name in ("a.mkv", "a.mp4"):
        with open_video(encode(tmp_path / name, "libx264", 10, H264, times=times)) as video:
            assert video.frames == 10
            assert numbers(video.read([1, 3, 6, 8, 9])) == [1, 3, 6, 8, 9]


@pytest.mark.parametrize(("degrees", "back"), [(90, 1), (180, 2), (270, 3)])
def test_rotation_is_applied(tmp_path: Path, degrees: int, back: int) -> None:
    """A phone held upright writes its pictures lying, and that they are shown turned clockwise by 90 degrees."""
    frames = read_clip(turn(encode(tmp_path / "a.mp4", "libx264", 3), degrees))
    assert frames.shape[2:] == ((64, 80) if degrees == 180 else (80, 64))
    assert numbers(frames, back) == [0, 1, 2]


@pytest.mark.parametrize(
    ("codec", "pixels"),
    [("libx264", "yuv420p10le"), ("libx265", "yuv420p10le"), ("libx264", "yuv444p"), ("libx264", "gray")],
)
def test_other_pixels_become_eight_bits_of_rgb(tmp_path: Path, codec: str, pixels: str) -> None:
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    frames = read_clip(encode(tmp_path / "a.mkv", codec, 3, options, pixels=pixels))
    assert frames.dtype == torch.uint8
    assert numbers(frames) == [0, 1, 2]
    assert 120 < float(frames[..., 70:].float().mean()) < 136  # the grey edge


def test_frames_before_an_edit_are_left_out(tmp_path: Path) -> None:
    """An edit list starts the clip at its fifth frame, as cutting without encoding again writes it."""
    import av

    whole = encode(tmp_path / "whole.mp4", "libx264", 20, {"g": "20", "bf": "0"})
    with av.open(str(whole)) as source, av.open(str(tmp_path / "cut.mp4"), "w") as target:
        stream = source.streams.video[0]
        copied = target.add_stream_from_template(stream)
        begin = 5 * 512
        for packet in source.demux(stream):
            if packet.size:
                packet.pts, packet.dts, packet.stream = packet.pts - begin, packet.dts - begin, copied
                target.mux(packet)
    with open_video(tmp_path / "cut.mp4") as video:
        assert video.frames == 15
        assert numbers(video.read([0, 7, 14])) == [5, 12, 19]


def test_memory_is_that_of_the_frames_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encode(tmp_path / "a.mp4", "libx264", 250, H264)
    frame = 3 * 64 * 80
    tracemalloc.start()
    with open_video(path) as video:
        video.read(sample_test(250, 8))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30 * frame  # Python's part: packets and one picture at a time
    monkeypatch.setenv(LIMIT_VARIABLE, "1")
    with open_video(path) as video:
        video.read(range(60))
        with pytest.raises(ClipError, match=r"a\.mp4: it takes 2 MiB in memory, more than the limit of 1 MiB"):
            video.read(range(100))


# --- files that cannot be used ---


def _bytes(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def _cut(path: Path) -> Path:
    return _bytes(path, path.read_bytes()[: path.stat().st_size * 2 // 3])


def _playlist(path: Path) -> Path:
    (path / "other.ts").write_bytes(encode(path / "real.ts", "libx264", 3).read_bytes())
    return _bytes(path / "a.mp4", b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nother.ts\n#EXT-X-ENDLIST\n")


def rotten(path: Path, name: str = "a.mp4", codec: str = "libx264", begin: int = 0) -> Path:
    """Half of the bytes of the 31st packet are changed, from ``begin`` on; the file's own tables are whole."""
    import av

    with av.open(str(encode(path / name, codec, 60, {"g": "30"}))) as file:
        packets = [packet for packet in file.demux(video=0) if packet.size]
        at, size = packets[30].pos, packets[30].size
    data = bytearray((path / name).read_bytes())
    for i in range(at + begin, at + begin + size // 2):
        data[i] ^= 0x5A
    return _bytes(path / name, bytes(data))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: _bytes(p / "a.mp4", b""), "it is empty"),
        (lambda p: _bytes(p / "a.mp4", b"this is a text"), "not a readable video"),
        (lambda p: encode_audio(p / "a.mp4"), "there is no video in it"),
        (lambda p: _cut(encode(p / "a.mp4", "libx264", 30)), r"it is broken off, \d+ bytes are missing"),
        (
            lambda p: _cut(encode(p / "a.webm", "libvpx-vp9", 30, KINDS[5][2])),
            r"it is broken off, \d+ bytes are missing",
        ),
        (lambda p: _cut(encode(p / "a.avi", "mpeg4", 30)), r"it is broken off, \d+ bytes are missing"),
        (_playlist, "not a readable video"),
        (rotten, r"frame \d+ is damaged|it cannot be decoded"),
    ],
    ids=["empty", "text", "audio", "cut mp4", "cut webm", "cut avi", "playlist", "rotten"],
)
def test_damaged_files_are_one_sentence(tmp_path: Path, make: Any, says: str) -> None:
    path = make(tmp_path)
    with pytest.raises(ClipError, match=says) as caught:
        read_clip(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).count(str(path)) == 1
    assert "\n" not in str(caught.value)


def test_too_many_pixels_are_refused_before_any_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encode(tmp_path / "a.mp4", "libx264", 2)
    monkeypatch.setattr("alt.data.video_files._PIXEL_SHARE", 1 << 20)
    with pytest.raises(ClipError, match=r"frames of at most 0\.0 million pixels are expected"):
        open_video(path)


def test_whole_files_miss_nothing(tmp_path: Path) -> None:
    for name, codec, options in KINDS[:6]:
        path = encode(tmp_path / name, codec, 3, options)
        assert find_missing_bytes(path) == 0
        path.write_bytes(path.read_bytes()[:-7])
        assert find_missing_bytes(path) == (7 if path.suffix != ".ts" else 0)


def test_a_wrong_index_of_key_frames_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A packet that only claims to be a key frame: frames are counted from the beginning, and are right."""
    path = encode(tmp_path / "a.mp4", "libx264", 40, {"g": "40", "bf": "3"})
    with open_video(path) as video:
        assert isinstance(video, VideoFile)
        video._starts = [(time, video._order[time]) for time in video._times]
        assert numbers(video.read([17, 30])) == [17, 30]
        assert not video._by_time


# --- a list of them ---


def _list(folder: Path, count: int, broken: tuple[int, ...]) -> Path:
    folder.mkdir(exist_ok=True)
    whole = encode(folder / "0.mp4", "libx264", 12, container={"movflags": "faststart"}).read_bytes()
    for i in range(count):
        (folder / f"{i}.mp4").write_bytes(whole[: 40 * i] if i in broken else whole)
    (folder / "list.txt").write_text("".join(f"{i}.mp4 {i}\n" for i in range(count)))
    return folder / "list.txt"


def test_a_damaged_clip_is_replaced_by_a_function_of_list_and_number(tmp_path: Path) -> None:
    """The same in every process and after any other reads; told with its name; or an error where that is wanted."""
    path = _list(tmp_path, 12, broken=(1, 4, 5))
    first = ClipViews(ClipFiles(path, damaged="replace"), frames=4, size=64)
    labels = [label for _, label in first]
    assert [i for i in range(12) if labels[i] != i] == [1, 4, 5]
    assert not {labels[i] for i in (1, 4, 5)} & {1, 4, 5}
    again = ClipViews(ClipFiles(path, damaged="replace"), frames=4, size=64)
    loader = torch.utils.data.DataLoader(torch.utils.data.Subset(again, [5, 4, 9, 1]), batch_size=4, num_workers=1)
    (batch,) = [found.tolist() for _, found in loader]
    assert batch == [labels[5], labels[4], 9, labels[1]]
    assert again.replaced == 3  # counted across processes
    assert again.describe() == [
        f"3 of 12 clips are damaged and were replaced by others: {tmp_path / '1.mp4'}, {tmp_path / '4.mp4'}, "
        f"{tmp_path / '5.mp4'}"
    ]
    among = torch.tensor([5, 7])
    assert ClipFiles(path, damaged="replace").take(4, lambda video: video.read([0]), among)[1] == 7
    with pytest.raises(ClipError, match=r"1\.mp4: "):
        ClipViews(ClipFiles(path), frames=4, size=64)[1]
    with pytest.raises(ClipError, match=r"; 19 clips in place of .*4\.mp4 are damaged as well"):
        ClipFiles(path, damaged="replace").take(4, lambda video: video.read([0]), torch.tensor([5, 1]))


def test_the_check_of_a_list_names_every_damaged_clip(tmp_path: Path) -> None:
    """Also damage that decoders conceal, so that reading gives a picture."""
    path = _list(tmp_path, 4, broken=(2,))
    (tmp_path / "0.mp4").unlink()
    rotten(tmp_path, "0.webm", "libvpx-vp9", 40)
    torch.save(torch.zeros(20, 3, 8, 8, dtype=torch.uint8), tmp_path / "5.pt")
    path.write_text("0.webm 0\n1.mp4 1\n2.mp4 2\n3.mp4 11 3\n5.pt 5\n")
    assert len(read_clip(tmp_path / "0.webm")) == 31  # the container's reader goes on behind the damage
    found = list(check_clips(ClipFiles(path).entries))
    assert [finding.frames for finding in found][1::2] == [12, 12]
    assert found[4].frames == 20
    assert found[0].problem is not None
    assert "of 31 frames could be decoded without error (" in found[0].problem
    assert found[1].problem is found[4].problem is None
    assert found[2].problem is not None
    assert found[2].problem == "there is no video in it"  # only the first bytes of the file are left
    assert found[3].problem == "the list gives it 11 frames, and it has 12"
    done: list[tuple[int, int]] = []
    counted = check_clips(ClipFiles(path).entries, progress=lambda *counts: done.append(counts))
    assert list(counted) == found
    assert done == [(i, 5) for i in range(1, 6)]
    _bytes(tmp_path / "1.mp4", (tmp_path / "1.mp4").read_bytes()[:-100])
    part = check_clip(Entry(tmp_path / "1.mp4", 0))  # its table is whole, and the first frames are there
    assert 0 < part.frames < 12
    assert "frames could be decoded without error (it is broken off, " in str(part.problem)


@pytest.mark.slow
def test_the_check_of_a_list_in_several_processes(tmp_path: Path) -> None:
    entries = ClipFiles(_list(tmp_path, 6, broken=(2, 4))).entries
    assert list(check_clips(entries, workers=2)) == list(check_clips(entries))


def test_the_command_says_what_it_found(tmp_path: Path) -> None:
    path = _list(tmp_path, 3, broken=())
    whole = CliRunner().invoke(build_app(), ["data", "check", str(path)])
    assert (whole.exit_code, whole.output) == (0, f"All 3 clips of {path} can be read: 36 frames.\n")
    (tmp_path / "1.mp4").write_bytes(b"")
    broken = CliRunner().invoke(build_app(), ["data", "check", str(path), "--json", str(tmp_path / "found.json")])
    assert broken.exit_code == 1
    assert f"{tmp_path / '1.mp4'}: it is empty\n" in broken.output
    assert f"Error: 1 of 3 clips of {path} cannot be read in full." in broken.output
    record = json.loads((tmp_path / "found.json").read_text())
    assert record[1] == {"path": str(tmp_path / "1.mp4"), "frames": 0, "problem": "it is empty"}
