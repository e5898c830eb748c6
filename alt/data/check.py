"""Reads every clip of a list to its end, and names those that a run would find short or damaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from .clip_lists import Entry, as_listed
from .video import ClipError, Video
from .video_files import VIDEOS, VideoFile
from .videos import naming, open_video

__all__ = ["Finding", "check_clip", "check_clips"]

_AT_ONCE = 16  # frames of a clip in memory


class Finding(NamedTuple):
    """path: of the clip. frames: that were decoded whole. problem: one sentence, or None for a clip without one."""

    path: Path
    frames: int
    problem: str | None


def check_clip(entry: Entry) -> Finding:
    """Decodes a clip's file to its end, and compares its frames with those that the list gives.

    Of a video file the decoder also reports the damage that it conceals when a run reads the file.
    """
    path, whole = entry.path, 0
    try:
        with naming(path), _open(path) as video:
            if isinstance(video, VideoFile):
                whole, error = video.decode_all()
                why = video.problem or error
                if why is not None or whole < video.frames:
                    because = f" ({why})" if why else ""
                    raise ClipError(f"{path}: {whole} of {video.frames} frames could be decoded without error{because}")
            else:
                for begin in range(0, video.frames, _AT_ONCE):
                    whole += len(video.read(range(begin, min(begin + _AT_ONCE, video.frames))))
            as_listed(video, entry)
    except ClipError as error:
        return Finding(path, whole, str(error).removeprefix(f"{path}: "))
    return Finding(path, whole, None)


def _open(path: Path) -> Video:
    return VideoFile(path, strict=True) if path.suffix.lower() in VIDEOS and path.is_file() else open_video(path)


def check_clips(
    entries: Sequence[Entry], *, workers: int = 0, progress: Callable[[int, int], None] | None = None
) -> Iterator[Finding]:
    """Yields the finding of every clip, in the order of the list.

    Args:
        entries: of a list, see :func:`alt.data.clip_lists.read_list`. workers: processes that decode; 0: this one.
        progress: called with (clips done, clips in all).
    """
    total = len(entries)
    if workers == 0:
        found: Iterator[Finding] = map(check_clip, entries)
        yield from _count(found, total, progress)
        return
    with ProcessPoolExecutor(workers, get_context("forkserver")) as pool:
        yield from _count(pool.map(check_clip, entries, chunksize=4), total, progress)


def _count(found: Iterator[Finding], total: int, progress: Callable[[int, int], None] | None) -> Iterator[Finding]:
    for done, finding in enumerate(found, 1):
        if progress is not None:
            progress(done, total)
        yield finding
