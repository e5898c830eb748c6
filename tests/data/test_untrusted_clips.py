"""Clip files that somebody else wrote: each is read rightly or refused in one sentence, within the limit of memory."""

from __future__ import annotations

import io
import os
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from alt.data import videos as module
from alt.data.clip_views import ClipViews
from alt.data.clips import ClipError, ClipFiles, read_clip, write_clip, write_clips
from alt.files import LIMIT_VARIABLE


def png(height: int = 8, width: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3)).save(buffer, "PNG")
    return buffer.getvalue()


def archive(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path / "clip.zip", "w", method) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path / "clip.zip"


def declared(data: bytes, width: int, height: int) -> bytes:
    """A PNG whose header says another size."""
    changed = bytearray(data)
    changed[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    changed[29:33] = zlib.crc32(bytes(changed[12:29])).to_bytes(4, "big")
    return bytes(changed)


# --- kind: what a small file takes in memory (limits on decoded size) ---


def _large_picture(p: Path) -> Path:
    (p / "0.png").write_bytes(declared(png(), 60_000, 60_000))
    return p


def _pictures_together(p: Path) -> Path:
    for i in range(12):
        (p / f"{i}.png").write_bytes(declared(png(), 200, 200) if i else png(200, 200))
    return p


def _long_member(p: Path) -> Path:
    return archive(p, {"a.png": bytes(3 << 20)}, zipfile.ZIP_DEFLATED)


def _many_members(p: Path) -> Path:
    return archive(p, {f"{i}.png": bytes(200 << 10) for i in range(8)}, zipfile.ZIP_DEFLATED)


def _expanded(p: Path) -> Path:
    torch.save(torch.zeros(1, 3, 1, 1, dtype=torch.uint8).expand(10**8, 3, 240, 240), p / "a.pt")
    return p / "a.pt"


def _compressed_tensors(p: Path) -> Path:
    torch.save(torch.zeros(4, 3, 64, 64), p / "plain.pt")
    with zipfile.ZipFile(p / "plain.pt") as plain, zipfile.ZipFile(p / "a.pt", "w", zipfile.ZIP_DEFLATED) as small:
        for name in plain.namelist():
            small.writestr(name, plain.read(name))
    return p / "a.pt"


def _array(p: Path) -> Path:
    np.savez_compressed(p / "a.npz", np.zeros((40, 100, 100, 3), np.uint8))
    return p / "a.npz"


def _array_header(p: Path) -> Path:
    np.save(p / "a.npy", np.zeros((2, 3, 8, 8), np.uint8))
    data = (p / "a.npy").read_bytes()
    (p / "a.npy").write_bytes(data.replace(b"(2, 3, 8, 8), ", b"(2, 3, 8, 99),"))
    return p / "a.npy"


def _long_header(p: Path) -> Path:
    (p / "a.npy").write_bytes(b"\x93NUMPY\x02\x00" + (50 << 20).to_bytes(4, "little") + b" " * 4096)
    return p / "a.npy"


def _bzip(p: Path) -> Path:
    return archive(p, {"a.png": bytes(1 << 20)}, zipfile.ZIP_BZIP2)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_large_picture, "0.png: not a readable picture \\(Image size|at most 0 million pixels is expected"),
        (_pictures_together, "it takes 2 MiB in memory, more than the limit of 1 MiB; if you trust it, set ALT_MAX"),
        (_long_member, "it takes 3 MiB in memory, more than the limit of 1 MiB"),
        (_many_members, "it takes 2 MiB in memory"),
        (_expanded, "needs 17280000000000 bytes, and the file has 3"),
        (_compressed_tensors, "its members are compressed"),
        (_array, "it takes 2 MiB in memory"),
        (_array_header, "needs 4752 bytes, and the file has 512"),
        (_long_header, "its header is broken off or too long"),
        (_bzip, "compressed by another method than deflate"),
    ],
)
def test_the_decoded_size_is_limited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], Path], says: str
) -> None:
    path = make(tmp_path)
    monkeypatch.setenv(LIMIT_VARIABLE, "1")
    with pytest.raises(ClipError, match=says) as caught:
        read_clip(path)
    assert str(caught.value).count(str(path)) == 1


def test_the_limit_is_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = torch.zeros(4, 3, 300, 300, dtype=torch.uint8)
    write_clip(tmp_path / "a.npy", frames)
    monkeypatch.setenv(LIMIT_VARIABLE, "1")
    with pytest.raises(ClipError, match="2 MiB in memory"):
        read_clip(tmp_path / "a.npy")
    monkeypatch.setenv(LIMIT_VARIABLE, "2")
    assert torch.equal(read_clip(tmp_path / "a.npy"), frames)
    monkeypatch.setenv(LIMIT_VARIABLE, "much")
    with pytest.raises(ClipError, match="ALT_MAX_DECODED_MIB: expected a whole number of MiB"):
        read_clip(tmp_path / "a.npy")


# --- kind: damaged or hostile files end in one sentence ---


def _encrypted(p: Path) -> Path:
    path = archive(p, {"a.png": png()})
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.find(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    return path


def _unknown_method(p: Path) -> Path:
    path = archive(p, {"a.png": png()})
    data = bytearray(path.read_bytes())
    data[8] = data[data.find(b"PK\x01\x02") + 10] = 97
    path.write_bytes(data)
    return path


def _broken_deflate(p: Path) -> Path:
    path = archive(p, {"a.png": b"text " * 500}, zipfile.ZIP_DEFLATED)
    data = bytearray(path.read_bytes())
    data[36] ^= 6
    data[40] ^= 0xFF
    path.write_bytes(data)
    return path


def _tensor(tensor: torch.Tensor) -> Callable[[Path], Path]:
    def make(p: Path) -> Path:
        torch.save(tensor, p / "a.pt")
        return p / "a.pt"

    return make


def _postscript(p: Path) -> Path:
    """Pillow would hand it to Ghostscript, another program."""
    (p / "0.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    return p


def _pipe(p: Path) -> Path:
    os.mkfifo(p / "a.npy")
    return p / "a.npy"


def _pipe_among_frames(p: Path) -> Path:
    (p / "0.png").write_bytes(png())
    os.mkfifo(p / "1.png")
    return p


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_encrypted, "is encrypted"),
        (_unknown_method, "not a readable archive"),
        (_broken_deflate, "not a readable archive"),
        (_tensor(torch.zeros(4, 3, 8, 8).to_sparse()), "a plain tensor is expected, got a sparse_coo"),
        (_tensor(torch.zeros(4, 3, 8, 8, device="meta")), "a plain tensor is expected, got a strided on meta"),
        (_tensor(torch.zeros(4, 3, 8, 8).to(torch.float8_e4m3fn)), "frames are expected, got torch.float8_e4m3fn"),
        (_tensor(torch.zeros(4, 3, 8, 8, dtype=torch.complex64)), "frames are expected, got torch.complex64"),
        (_postscript, "not a readable picture"),
        (_pipe, "a file is expected, this is a device or a pipe"),
        (_pipe_among_frames, "1.png: not a readable picture"),
    ],
)
def test_hostile_files_end_in_one_sentence(tmp_path: Path, make: Callable[[Path], Path], says: str) -> None:
    path = make(tmp_path)
    with pytest.raises(ClipError, match=says) as caught:
        read_clip(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


# --- kind: values that are read as something else ---


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_sixteen_bits_keep_their_upper_eight(tmp_path: Path, dtype: str) -> None:
    ramp = np.tile(np.linspace(0, 65535, 32, dtype=np.uint16), (8, 1))
    Image.fromarray(ramp.astype(dtype)).save(tmp_path / "0.png")
    assert read_clip(tmp_path)[0, 2, 0].tolist() == (ramp[0] // 256).tolist()


def test_resource_forks_and_hidden_files_are_no_frames(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    members = {}
    for i in range(3):
        (folder / f"{i}.png").write_bytes(png())
        (folder / f"._{i}.png").write_bytes(b"\0\5\x16\7resource fork")
        members |= {f"clip/{i}.png": png(), f"__MACOSX/clip/._{i}.png": b"\0\5\x16\7"}
    (folder / ".thumbnail.jpg").write_bytes(b"x")
    assert len(read_clip(folder)) == 3
    assert torch.equal(read_clip(archive(tmp_path, members)), read_clip(folder))


# --- kind: a special file is not replaced by an output ---


@pytest.mark.parametrize("name", ["clip.npy", "clip.npz", "clip.pt", "00000.png"])
def test_a_pipe_is_not_written_over(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    target = tmp_path if name.endswith("png") else tmp_path / name
    with pytest.raises(OSError, match="it is a device or a pipe"):
        write_clip(target, torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
    assert not (tmp_path / name).is_file()


def test_the_list_of_written_clips_replaces_no_device(tmp_path: Path) -> None:
    (tmp_path / "list.txt").symlink_to("/dev/null")
    with pytest.raises(OSError, match="could not save the list of clips"):
        write_clips(tmp_path, torch.zeros(1, 1, 3, 4, 4, dtype=torch.uint8), [0], ["a"], "npy")
    assert (tmp_path / "list.txt").is_symlink()


def test_a_picture_near_the_limit_is_read_without_a_remark(tmp_path: Path) -> None:
    Image.new("1", (9500, 9500)).save(tmp_path / "0.png")  # above Pillow's own warning
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ClipError, match="at most 67 million pixels is expected, this one has 90"):
            read_clip(tmp_path)


# --- kind: an error in a loading process names the clip ---


def test_any_error_in_a_loading_process_names_the_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "thin.npy", np.zeros((2, 1, 60_000, 3), np.uint8))
    (tmp_path / "film.mp4").write_bytes(b"x")

    def decode(path: Path) -> torch.Tensor:
        raise RuntimeError("no stream\nin it")

    monkeypatch.setitem(module._DECODERS, ".mp4", decode)
    (tmp_path / "list.txt").write_text("thin.npy 0\nfilm.mp4 1\n")
    views = ClipViews(ClipFiles(tmp_path / "list.txt"), frames=8, size=224)
    for index, says in ((0, "thin.npy: frames of 1 x 60000 .* MiB in memory"), (1, "film.mp4: no stream$")):
        loader = torch.utils.data.DataLoader(torch.utils.data.Subset(views, [index]), num_workers=1)
        with pytest.raises(ClipError, match=says):
            list(loader)


def test_an_expanded_tensor_is_refused_by_its_size(tmp_path: Path) -> None:
    """Three bytes that call themselves 17 TB of frames."""
    path = tmp_path / "a.pt"
    torch.save(torch.zeros(1, 3, 1, 1, dtype=torch.uint8).expand(10**8, 3, 240, 240), path)
    with pytest.raises(ClipError, match=r"a\.pt: .*needs 17280000000000 bytes, and the file has 3"):
        read_clip(path)
    torch.save(torch.zeros(8, 3, 24, 24, dtype=torch.uint8)[::2], path)  # a slice keeps more than it shows
    assert read_clip(path).shape == (4, 3, 24, 24)
