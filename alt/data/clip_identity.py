"""What tells one content of a clip from another without reading it, for caches of what was made of it.

It is the clip's path, what the file system says of its files (size, times of the last change of content and of status),
and the code and the libraries that read them. A hash of the content would cost reading the whole file, which takes as
long as decoding a few frames. Programs cannot set the time of the last change of status, so a file that is replaced by
another one of equal size and time is noticed. A file that changed in the last two seconds may change once more within
the resolution of the clock, unnoticed. What is made of it is not kept.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from . import array_videos, picture_videos, video, video_files
from .videos import has_decoder

__all__ = ["Identity", "describe_readers", "identify"]

_SETTLED = 2.0  # seconds without a change; the times of some file systems have this resolution


class Identity(NamedTuple):
    """clip: a name of the path. state: a digest of the state of its files and of their readers. settled: they did not
    change for a while."""

    clip: str
    state: str
    settled: bool

    def is_current(self, path: Path) -> bool:
        """Returns whether the clip is still as it was."""
        now = identify(path)
        return now is not None and now[:2] == self[:2]


def identify(path: Path) -> Identity | None:
    """Returns the identity of a clip now; None if it is not there, or a registered function reads it."""
    if has_decoder(path.suffix):
        return None
    try:
        real = os.path.realpath(path)
        found = [("", os.stat(real))]
        if os.path.isdir(real):
            with os.scandir(real) as items:
                found += sorted((item.name, item.stat()) for item in items if picture_videos.is_picture(item.name))
    except (OSError, ValueError):
        return None
    digest = hashlib.sha256(describe_readers().encode())
    for name, state in found:
        times = f"{state.st_size} {state.st_mtime_ns} {state.st_ctime_ns}"
        digest.update(os.fsencode(f"\0{name}\0") + times.encode())
    changed = max(max(state.st_mtime, state.st_ctime) for _, state in found)
    clip = hashlib.sha256(os.fsencode(real)).hexdigest()
    return Identity(f"{clip[:2]}/{clip[2:34]}", digest.hexdigest()[:32], time.time() - changed > _SETTLED)


@functools.cache
def describe_readers() -> str:
    """Returns what decides the pixels of a frame besides its file: a hash of the reading code, and its libraries."""
    code = hashlib.sha256()
    for module in (video, video_files, picture_videos, array_videos):
        code.update(Path(str(module.__file__)).read_bytes())
    versions = []
    for name in ("av", "pillow", "numpy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions.append(f"{name} {metadata.version(name)}")
    with contextlib.suppress(ImportError):
        import av

        versions.append(str(sorted(av.library_versions.items())))
    return " ".join([code.hexdigest(), platform.machine(), *versions])
