"""Readers of clip files, which trust nothing in the file: pictures, archives of pictures, arrays.

What a clip takes in memory is limited (:func:`alt.files.decoded_limit`), and checked against the sizes that the file
declares before anything is decoded. One picture may have a sixteenth of it in pixels.
"""

from __future__ import annotations

import io
import math
import re
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from alt.files import (
    LIMIT_VARIABLE,
    check_decoded,
    decoded_limit,
    describe_error,
    read_torch,
    require_file,
    tensor_bytes,
)

__all__ = [
    "ARRAYS",
    "PICTURES",
    "ClipError",
    "as_frames",
    "read_array_file",
    "read_folder",
    "read_picture",
    "read_zip",
]

PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
ARRAYS = {".npy", ".npz", ".pt"}
FORMATS = ("PNG", "JPEG", "BMP", "WEBP")  # Pillow knows more, one of which (EPS) starts another program
_PIXEL_SHARE = 16
_HEADER = 10_000  # bytes of an array's header, as numpy.load limits it
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class ClipError(ValueError):
    """A clip or a list cannot be used. The message is one sentence that names the path."""

    def __init__(self, text: str) -> None:
        # torch rebuilds an error of a loading process from its whole traceback, whose last line is the message.
        last = text.strip().splitlines()[-1]
        super().__init__(last.removeprefix(f"{type(self).__module__}.{type(self).__name__}: "))


# --- pictures ---


def is_picture(name: str) -> bool:
    """Returns whether a name in a folder or archive is a frame: a picture's ending, not hidden, not of __MACOSX.

    A Mac puts a file ``._0.png`` beside every ``0.png`` that it copies or archives.
    """
    parts = PurePosixPath(name).parts
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not hidden and PurePosixPath(name).suffix.lower() in PICTURES


def natural_key(name: str) -> list[tuple[int, str]]:
    """Returns a key for sorting that puts frame2 before frame10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d{1,4000})", name)]


def read_picture(source: Path | IO[bytes], name: str, formats: tuple[str, ...] = FORMATS) -> np.ndarray:
    """Reads one picture as uint8 ``[H, W, 3]``. Of 16 bits per value, the upper 8 are kept.

    Args:
        source: the file. name: of the messages. formats: Pillow's names of the formats that are tried.

    Raises:
        ClipError: it is no picture of these formats, too large, or has more than 16 bits per value.
    """
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise ClipError("reading pictures needs pillow; install it with: pip install 'alt-kernels[models]'") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is below it
            opened = Image.open(source, formats=formats)
        with opened as picture:
            _check_pixels(picture.width * picture.height, name)
            # Pillow's own conversion would clip at 255. Of these two formats, mode "I" has 16 bits.
            if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in ("PNG", "PPM")):
                gray = np.asarray(picture).astype(np.uint16) >> 8
                return np.repeat(gray.astype(np.uint8)[..., None], 3, axis=2)
            if picture.mode in ("I", "F"):
                raise ClipError(f"{name}: pictures of 8 or 16 bits per value are expected, this one has 32")
            return np.array(picture.convert("RGB"))
    except ClipError:
        raise
    except Exception as error:  # damaged bytes can make a decoder raise anything
        raise ClipError(f"{name}: not a readable picture ({describe_error(error)})") from None


def _check_pixels(pixels: int, name: str) -> None:
    limit = decoded_limit() // _PIXEL_SHARE
    if pixels > limit:
        raise ClipError(
            f"{name}: a picture of at most {limit / 1e6:.0f} million pixels is expected, this one has "
            f"{pixels / 1e6:.0f}; if you trust it, set {LIMIT_VARIABLE}"
        )


def _stack(pictures: Iterable[tuple[str, np.ndarray]], count: int, where: Path) -> Tensor:
    """Returns ``count`` pictures as one clip, whose memory is taken once, after the first picture told its size."""
    frames: Tensor | None = None
    for number, (name, picture) in enumerate(pictures):
        height, width = picture.shape[:2]
        if frames is None:
            _check_clip(count * 3 * height * width, where)
            frames = torch.empty(count, 3, height, width, dtype=torch.uint8)
        if (height, width) != frames.shape[2:]:
            first_h, first_w = frames.shape[2:]
            raise ClipError(
                f"{where}: frames of one size are expected, {name} is {height} x {width}, not {first_h} x {first_w}"
            )
        frames[number] = torch.from_numpy(picture).permute(2, 0, 1)
    if frames is None:
        raise ClipError(f"{where}: no pictures in it ({', '.join(sorted(PICTURES))} are read)")
    return frames


def _check_clip(size: int, where: Path | str) -> None:
    try:
        check_decoded(size, str(where))
    except ValueError as error:
        raise ClipError(str(error)) from None


def read_folder(path: Path) -> Tensor:
    """Reads a folder of pictures, uint8 ``[F, 3, H, W]``, in natural order."""
    try:
        files = sorted((f for f in path.iterdir() if is_picture(f.name)), key=lambda f: natural_key(f.name))
    except OSError as error:
        raise ClipError(f"{path}: not a readable folder ({describe_error(error)})") from None
    return _stack(((f.name, _read_file(f)) for f in files), len(files), path)


def _read_file(path: Path) -> np.ndarray:
    try:
        return read_picture(require_file(path), str(path))
    except ClipError:
        raise
    except (OSError, ValueError) as error:
        raise ClipError(f"{path}: not a readable picture ({describe_error(error)})") from None


def read_zip(path: Path) -> Tensor:
    """Reads an archive of pictures, uint8 ``[F, 3, H, W]``, in natural order of their whole names."""
    try:
        with zipfile.ZipFile(require_file(path)) as archive:
            members = [member for member in archive.infolist() if is_picture(member.filename)]
            members.sort(key=lambda member: natural_key(member.filename))
            check_decoded(sum(member.file_size for member in members), str(path))
            named = ((m.filename, read_picture(_open_member(archive, m), f"{path}: {m.filename}")) for m in members)
            return _stack(named, len(members), path)
    except ClipError:
        raise
    except Exception as error:  # damaged bytes can make zipfile and zlib raise a dozen kinds
        raise ClipError(_with_path(path, "not a readable archive", error)) from None


def _open_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> io.BytesIO:
    """Returns a member's bytes."""
    _check_method(member)
    with archive.open(member) as stream:  # ends at the declared size, whatever follows
        return io.BytesIO(stream.read())


def _check_method(member: zipfile.ZipInfo) -> None:
    """Raises for another method than deflate, by which zipfile would decompress any amount at once."""
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{member.filename} is compressed by another method than deflate")


def _with_path(path: Path, what: str, error: Exception) -> str:
    """Returns a message that names the path once."""
    reason = describe_error(error) if isinstance(error, OSError) else str(error)
    return reason if reason.startswith(f"{path}: ") else f"{path}: {what} ({describe_error(error)})"


# --- arrays ---


def read_array_file(path: Path) -> Tensor:
    """Reads the one array of a ``.npy``, ``.npz`` or ``.pt`` file, of any shape and type."""
    try:
        if path.suffix.lower() == ".pt":
            return _read_tensor(path)
        if path.suffix.lower() == ".npy":
            found = require_file(path)
            with found.open("rb") as file:
                _check_array(file, found.stat().st_size, path)
                file.seek(0)
                loaded = np.lib.format.read_array(file, allow_pickle=False)
        else:
            loaded = _read_npz(path)
        return torch.from_numpy(np.ascontiguousarray(loaded))
    except ClipError:
        raise
    except Exception as error:  # damaged bytes can make the loaders raise anything
        raise ClipError(_with_path(path, "not a readable array file", error)) from None


def _read_tensor(path: Path) -> Tensor:
    found = read_torch(path, decoded_limit())
    if not isinstance(found, Tensor):
        raise ClipError(f"{path}: one tensor is expected in it, got {type(found).__name__}")
    _check_clip(tensor_bytes(found), path)
    return found.detach().clone()


def _read_npz(path: Path) -> np.ndarray:
    with zipfile.ZipFile(require_file(path)) as archive:
        members = archive.infolist()
        if len(members) != 1:
            raise ClipError(f"{path}: one array is expected in it, got {len(members)}")
        member = members[0]
        _check_method(member)
        with archive.open(member) as stream:
            _check_array(stream, member.file_size, path)
        with archive.open(member) as stream:
            return np.lib.format.read_array(stream, allow_pickle=False)


def _check_array(stream: IO[bytes], size: int, path: Path) -> None:
    """Compares the size that an array's header declares with the limit and with the ``size`` bytes of its file."""
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"a plain array is expected, this one is of version {version}")
    count = 2 if version == (1, 0) else 4
    length = stream.read(count)
    if len(length) < count or (header := int.from_bytes(length, "little")) > _HEADER:
        raise ValueError("its header is broken off or too long")
    begin = io.BytesIO(length + stream.read(header))
    parse: Any = np.lib.format.read_array_header_1_0 if count == 2 else np.lib.format.read_array_header_2_0
    shape, _, dtype = parse(begin)
    if any(side < 0 for side in shape):
        raise ValueError(f"its shape is {list(shape)}")
    data = math.prod(shape) * dtype.itemsize
    _check_clip(data, path)
    if not dtype.hasobject and data > size:
        raise ValueError(f"its shape {list(shape)} needs {data} bytes, and the file has {size}")


def as_frames(array: Tensor, name: str = "clip") -> Tensor:
    """Returns an array as frames, uint8 ``[F, 3, H, W]``; raises ClipError for another shape, type or range."""
    try:
        tensor_bytes(array)
    except ValueError as error:
        raise ClipError(f"{name}: {error}") from None
    if array.ndim == 4 and array.shape[1] != 3 and array.shape[3] == 3:
        array = array.permute(0, 3, 1, 2)
    if array.ndim != 4 or array.shape[1] != 3 or 0 in array.shape[2:]:
        raise ClipError(f"{name}: frames [F, 3, H, W] or [F, H, W, 3] are expected, got {list(array.shape)}")
    if array.shape[0] == 0:
        raise ClipError(f"{name}: no frames in it")
    if array.dtype == torch.uint8:
        return array.contiguous()
    if array.dtype not in _FLOATS:
        raise ClipError(f"{name}: uint8 or floating-point frames are expected, got {array.dtype}")
    low, high = array.aminmax()
    if not (low >= 0 and high <= 1):  # also true of nan
        raise ClipError(f"{name}: floating-point frames lie in [0, 1], got {float(low):g} to {float(high):g}")
    frames = torch.empty(array.shape, dtype=torch.uint8)
    for target, frame in zip(frames, array, strict=True):  # one frame at a time, so that memory is taken once
        target.copy_((frame.to(torch.float32) * 255.0).round())
    return frames
