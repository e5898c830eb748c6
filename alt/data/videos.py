"""Opens any clip as a video with random access: files, folders and archives of pictures, arrays."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from torch import Tensor

from alt.files import describe_error

from .array_videos import ARRAYS, open_array
from .picture_videos import FolderVideo, ZipVideo
from .video import ClipError, MemoryVideo, Video, as_frames
from .video_files import VIDEOS, VideoFile

__all__ = ["has_decoder", "naming", "open_video", "read_clip", "readable_suffixes", "register_decoder"]

_DECODERS: dict[str, Callable[[Path], Tensor]] = {}


def register_decoder(suffix: str, decode: Callable[[Path], Tensor]) -> None:
    """Lets ``open_video`` open files with this suffix: ``decode(path)`` returns all frames, uint8 ``[F, 3, H, W]``.

    It is for kinds of files that are not read here, and takes the place of the reader of a suffix that is.
    """
    if not suffix.startswith("."):
        raise ValueError(f"suffix: expected one with its dot, such as '.mp4', got {suffix!r}")
    _DECODERS[suffix.lower()] = decode


def has_decoder(suffix: str) -> bool:
    """Returns whether files with this ending are read by a registered function."""
    return suffix.lower() in _DECODERS


def open_video(path: str | Path) -> Video:
    """Opens a clip: its number of frames, its rate, and its frames by their numbers::

        with open_video("clip.mp4") as video:
            middle = video.read([video.frames // 2])  # uint8 [1, 3, H, W]

    Nothing in a file is executed, and what is read takes limited memory, see :func:`alt.files.decoded_limit`. Files
    whose names begin with a dot, and the folder ``__MACOSX`` of an archive, are no frames.

    Raises:
        ClipError: the path is missing, the file cannot be read, its array has another shape, or it is too large.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if path.is_dir():
        return FolderVideo(path)
    if not path.exists():
        raise ClipError(f"{path}: no such file or folder")
    if suffix in _DECODERS:
        with naming(path):
            frames = _DECODERS[suffix](path)
        return MemoryVideo(as_frames(frames, str(path)), path)
    if suffix == ".zip":
        return ZipVideo(path)
    if suffix in ARRAYS:
        return open_array(path)
    if suffix in VIDEOS:
        return VideoFile(path)
    raise ClipError(f"{path}: a folder of pictures or a file of {', '.join(sorted(readable_suffixes()))} is expected")


def read_clip(path: str | Path) -> Tensor:
    """Returns all frames of a clip, uint8 ``[F, 3, H, W]``; errors as in :func:`open_video`."""
    with open_video(path) as video:
        return video.read_all()


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Turns errors in the block into ClipErrors that name the clip, also in a loading process."""
    try:
        yield
    except ClipError:
        raise
    except (ValueError, TypeError, RuntimeError, MemoryError, OSError) as error:
        raise ClipError(f"{path}: {describe_error(error)}") from error


def readable_suffixes() -> set[str]:
    """Returns the endings of files that can be opened."""
    return {".zip", *ARRAYS, *VIDEOS, *_DECODERS}
