"""Clips that are pictures: a folder of them, or an archive. Only the pictures asked for are decoded.

What they take in memory is limited (:func:`alt.files.decoded_limit`), and checked against the sizes that the files
declare before anything is decoded. One picture may have a sixteenth of it in pixels.
"""

from __future__ import annotations

import io
import re
import warnings
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
import torch
from torch import Tensor

from alt.files import LIMIT_VARIABLE, check_decoded, decoded_limit, describe_error, require_file

from .video import ClipError, Video, check_method, check_size, with_path

__all__ = ["PICTURES", "FolderVideo", "ZipVideo", "is_picture", "natural_key", "read_picture"]

PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
FORMATS = ("PNG", "JPEG", "BMP", "WEBP")  # Pillow knows more, one of which (EPS) starts another program
_PIXEL_SHARE = 16


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


class FolderVideo(Video):
    """A folder of pictures in natural order. It has no frame rate."""

    def __init__(self, path: Path) -> None:
        try:
            files = [file for file in path.iterdir() if is_picture(file.name)]
        except OSError as error:
            raise ClipError(f"{path}: not a readable folder ({describe_error(error)})") from None
        self._files = sorted(files, key=lambda file: natural_key(file.name))
        super().__init__(path, _require_pictures(len(files), path))

    def _read(self, places: Sequence[int]) -> Tensor:
        chosen = [self._files[place] for place in places]
        return _stack(((file.name, _read_file(file)) for file in chosen), len(chosen), self.path)


def _read_file(path: Path) -> np.ndarray:
    try:
        return read_picture(require_file(path), str(path))
    except ClipError:
        raise
    except (OSError, ValueError) as error:
        raise ClipError(f"{path}: not a readable picture ({describe_error(error)})") from None


class ZipVideo(Video):
    """An archive of pictures in the natural order of their whole names. It has no frame rate."""

    def __init__(self, path: Path) -> None:
        try:
            self._archive = zipfile.ZipFile(require_file(path))
        except Exception as error:  # damaged bytes can make zipfile raise a dozen kinds
            raise ClipError(with_path(path, "not a readable archive", error)) from None
        members = [member for member in self._archive.infolist() if is_picture(member.filename)]
        self._members = sorted(members, key=lambda member: natural_key(member.filename))
        super().__init__(path, _require_pictures(len(members), path))

    def close(self) -> None:
        self._archive.close()

    def _read(self, places: Sequence[int]) -> Tensor:
        members = [self._members[place] for place in places]
        try:
            check_decoded(sum(member.file_size for member in members), str(self.path))
            named = ((m.filename, read_picture(self._open(m), f"{self.path}: {m.filename}")) for m in members)
            return _stack(named, len(members), self.path)
        except ClipError:
            raise
        except Exception as error:  # so can zlib
            raise ClipError(with_path(self.path, "not a readable archive", error)) from None

    def _open(self, member: zipfile.ZipInfo) -> io.BytesIO:
        """Returns a member's bytes."""
        check_method(member)
        with self._archive.open(member) as stream:  # ends at the declared size, whatever follows
            return io.BytesIO(stream.read())


def _require_pictures(count: int, path: Path) -> int:
    if count == 0:
        raise ClipError(f"{path}: no pictures in it ({', '.join(sorted(PICTURES))} are read)")
    return count


def _stack(pictures: Iterable[tuple[str, np.ndarray]], count: int, where: Path) -> Tensor:
    """Returns ``count`` pictures as one clip, whose memory is taken once, after the first picture told its size."""
    frames: Tensor | None = None
    for number, (name, picture) in enumerate(pictures):
        height, width = picture.shape[:2]
        if frames is None:
            check_size(count * 3 * height * width, where)
            frames = torch.empty(count, 3, height, width, dtype=torch.uint8)
        if (height, width) != frames.shape[2:]:
            first_h, first_w = frames.shape[2:]
            raise ClipError(
                f"{where}: frames of one size are expected, {name} is {height} x {width}, not {first_h} x {first_w}"
            )
        frames[number] = torch.from_numpy(picture).permute(2, 0, 1)
    assert frames is not None
    return frames
