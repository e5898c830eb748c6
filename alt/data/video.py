"""A video with random access, and what its readers share: checks of sizes, shapes and archives."""

from __future__ import annotations

import zipfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from alt.files import check_decoded, describe_error, tensor_bytes

__all__ = [
    "ClipError",
    "MemoryVideo",
    "PartOfVideo",
    "Video",
    "as_frames",
    "as_video",
    "check_method",
    "check_size",
    "with_path",
]

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class ClipError(ValueError):
    """A clip or a list cannot be used. The message is one sentence that names the path."""

    def __init__(self, text: str) -> None:
        # torch rebuilds an error of a loading process from its whole traceback, whose last line is the message.
        last = text.strip().splitlines()[-1]
        super().__init__(last.removeprefix(f"{type(self).__module__}.{type(self).__name__}: "))


class Video(ABC):
    """Frames by their numbers. Use it in a ``with`` block, which closes its file.

    Memory is that of the frames that are asked for, and limited (:func:`alt.files.decoded_limit`).

    Attributes:
        path: of the video, for messages. frames: their number. fps: frames per second on average, None if not known.
        steady: False once times or key frames misled a read: then a frame may depend on those that are read with it.
    """

    steady = True

    def __init__(self, path: Path, frames: int, fps: float | None = None) -> None:
        self.path, self.frames, self.fps = path, frames, fps

    def read(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Returns the frames with these numbers, in this order, uint8 ``[n, 3, H, W]``; numbers may repeat.

        Raises:
            ValueError: there are no numbers, or one is no frame. ClipError: a frame cannot be decoded.
        """
        wanted = indices.tolist() if isinstance(indices, Tensor) else list(indices)
        wrong = next((n for n in wanted if not 0 <= n < self.frames), None)
        if wrong is not None or not wanted:
            got = "none" if wrong is None else wrong
            raise ValueError(f"indices: expected numbers of frames from 0 to {self.frames - 1}, got {got}")
        places = sorted(set(wanted))
        found = self._read(places)
        if places == wanted:
            return found
        rows = {place: row for row, place in enumerate(places)}
        return found[[rows[place] for place in wanted]]

    def read_all(self) -> Tensor:
        """Returns all frames, uint8 ``[F, 3, H, W]``."""
        return self._read(range(self.frames))

    @abstractmethod
    def _read(self, places: Sequence[int]) -> Tensor:
        """Returns the frames ``places``, which are distinct and ascending."""

    def close(self) -> None:  # noqa: B027  (most videos hold no open file)
        """Closes the file. A video without an open file does nothing."""

    def __enter__(self) -> Video:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class MemoryVideo(Video):
    """Frames in memory, uint8 ``[F, 3, H, W]``."""

    def __init__(self, frames: Tensor, path: Path = Path("clip")) -> None:
        if frames.ndim != 4:
            raise ValueError(f"video: expected [F, 3, H, W], got {list(frames.shape)}")
        super().__init__(path, len(frames))
        self._frames = frames

    def _read(self, places: Sequence[int]) -> Tensor:
        return self._frames[list(places)]


class PartOfVideo(Video):
    """The frames of another video from number ``begin`` up to, not including, ``end``. Closing it closes the video."""

    def __init__(self, video: Video, begin: int, end: int) -> None:
        super().__init__(video.path, end - begin, video.fps)
        self._video, self._begin = video, begin

    def _read(self, places: Sequence[int]) -> Tensor:
        return self._video._read([self._begin + place for place in places])

    def close(self) -> None:
        self._video.close()


def as_video(video: Video | Tensor) -> Video:
    """Returns a video; frames ``[F, 3, H, W]`` become one."""
    return MemoryVideo(video) if isinstance(video, Tensor) else video


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


def check_size(size: int, where: Path | str) -> None:
    """Raises ClipError if a clip would take more than the limit of memory."""
    try:
        check_decoded(size, str(where))
    except ValueError as error:
        raise ClipError(str(error)) from None


def check_method(member: zipfile.ZipInfo) -> None:
    """Raises for another method than deflate, by which zipfile would decompress any amount at once."""
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{member.filename} is compressed by another method than deflate")


def with_path(path: Path, what: str, error: Exception) -> str:
    """Returns a message that names the path once."""
    reason = describe_error(error) if isinstance(error, OSError) else str(error)
    return reason if reason.startswith(f"{path}: ") else f"{path}: {what} ({describe_error(error)})"
