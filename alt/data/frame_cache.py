"""Decoded frames of clips, kept in a folder: a frame that was read once is not decoded again.

Frames are kept as they are decoded, in their own size. Training crops and resizes them in another way in every epoch,
so only this gives the same clips, bit for bit, as reading without a cache. A frame takes ``3 H W`` bytes.

Training reads other frames in every epoch, and a frame of a video costs the decoding of those before it. So a video
that training reads is kept whole, up to 256 MiB. Of all other clips the frames that were read are kept.

An entry is known by the identity of its clip (:mod:`alt.data.clip_identity`), so a changed clip is read anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

from .cache_folder import GIB, CacheFolder
from .clip_identity import Identity, identify
from .video import ClipError, Video, check_size
from .video_files import VIDEOS, VideoFile
from .videos import open_video

__all__ = ["FrameCache"]

_MAGIC = b"ALTFRM01"
_HEAD = struct.Struct("<8sIIIIdI")  # magic, frames of the clip, frames kept, height, width, rate or nan, checksum
_ENTRY = struct.Struct("<II")  # number of a frame, checksum of its pixels
_KINDS = {*VIDEOS, ".zip"}
_WHOLE = 256 << 20  # bytes of a video that is kept whole: a loading process holds them while it reads
_SLOTS = 129  # of counters: one for the process itself, others for its loading processes
_TAKEN, _DECODED, _DAMAGED = range(3)


class FrameCache:
    """Decoded frames of videos, archives and folders of pictures; other clips are read as they are.

    Args:
        folder: of the entries, is created. gib: that it may hold, in GiB.
        whole: keep whole videos, for training; False: only the frames that are read.

    Raises:
        UserError: the folder cannot be written, or holds other files.
    """

    def __init__(self, folder: str | Path, gib: int, *, whole: bool = False) -> None:
        self.entries = CacheFolder(folder, gib * GIB, "data.frame_cache")
        self.whole = whole
        # A row for each loading process, which none shares with another: no count is lost.
        self._counts = torch.zeros(_SLOTS, 3, dtype=torch.int64).share_memory_()

    def open(self, path: Path) -> Video:
        """Opens a clip as :func:`alt.data.videos.open_video` does, with the frames of it that are kept.

        Raises:
            ClipError: as there, if the clip must be read.
        """
        kept = path.suffix.lower() in _KINDS or path.is_dir()
        identity = identify(path) if kept else None
        return open_video(path) if identity is None else _KeptVideo(self, path, identity)

    def count(self, which: int, number: int = 1) -> None:
        worker = torch.utils.data.get_worker_info()
        self._counts[0 if worker is None else 1 + worker.id % (_SLOTS - 1), which] += number

    def describe(self) -> list[str]:
        """Returns lines on the frames read so far, by any process of this run."""
        taken, decoded, damaged = self._counts.sum(0).tolist()
        if not taken + decoded:
            return []
        lines = [f"{taken} frames came from the cache, {decoded} were decoded; {self.entries.describe()}"]
        if damaged:
            lines.append(f"{damaged} damaged entries of the cache were decoded again")
        return lines


class _Part(NamedTuple):
    """The head of an entry. rows: of the kept frames, by their numbers, and the checksums of their pixels."""

    name: str
    frames: int
    height: int
    width: int
    fps: float | None
    rows: dict[int, tuple[int, int]]

    @property
    def begin(self) -> int:
        """Returns the place of the first frame in the entry."""
        return _HEAD.size + _ENTRY.size * len(self.rows)


class _KeptVideo(Video):
    """A clip whose kept frames are read from the cache. The clip itself is opened if others are asked for."""

    def __init__(self, cache: FrameCache, path: Path, identity: Identity) -> None:
        self._cache, self._identity = cache, identity
        self._source: Video | None = None
        self._damaged = False  # somewhere, not where it was read
        self.path = path
        self._parts = self._find_parts()
        first = next(iter(self._parts), None) or self._open_source()
        super().__init__(path, first.frames, first.fps)

    def close(self) -> None:
        if self._source is not None:
            self._source.close()
            self._source = None

    def _open_source(self) -> Video:
        if self._source is None:
            self._source = open_video(self.path)
        return self._source

    def _read(self, places: Sequence[int]) -> Tensor:
        kept = self._take(places)
        missing = [place for place in places if place not in kept]
        self._cache.count(_TAKEN, len(kept))
        if not missing:
            return torch.stack([kept[place] for place in places])
        self._cache.count(_DECODED, len(missing))
        found, unchanged = self._decode(missing)
        if not kept:
            return found
        if not unchanged or found.shape[1:] != next(iter(kept.values())).shape:
            with open_video(self.path) as fresh:  # it changed while it was read
                return fresh.read(places)
        kept.update(zip(missing, found, strict=True))
        return torch.stack([kept[place] for place in places])

    # --- the clip ---

    def _decode(self, places: Sequence[int]) -> tuple[Tensor, bool]:
        """Returns frames of the clip itself, which are kept if they may be, and whether it is still the same clip."""
        source = self._open_source()
        whole = self._decode_whole(source)
        found = source.read(places) if whole is None else whole[list(places)]
        unchanged = self._identity.is_current(self.path)
        if unchanged and self._identity.settled and source.steady and not self._damaged:
            if whole is None:
                self._keep(places, found, source.fps)
            else:
                self._keep(range(len(whole)), whole, source.fps)
        return found, unchanged

    def _decode_whole(self, source: Video) -> Tensor | None:
        """Returns all frames of a video that is to be kept whole, or None if it is not, or is damaged somewhere."""
        if not (self._cache.whole and isinstance(source, VideoFile) and self._identity.settled):
            return None
        size = source.frames * 3 * source.pixels
        if size > _WHOLE or not self._cache.entries.has_room(size):
            return None
        try:
            with VideoFile(self.path) as another:
                found = another.read_all()
                self._damaged = not another.steady or len(found) != source.frames
        except ClipError:
            self._damaged = True
        return None if self._damaged else found

    # --- entries ---

    def _find_parts(self) -> list[_Part]:
        """Returns the entries of the clip as it is now, the largest first."""
        folder = self._cache.entries.folder / self._identity.clip
        try:
            names = [name for name in os.listdir(folder) if name.startswith(self._identity.state)]
        except OSError:
            return []
        parts = [self._read_head(f"{self._identity.clip}/{name}") for name in names]
        return sorted((part for part in parts if part is not None), key=lambda part: -len(part.rows))

    def _read_head(self, name: str) -> _Part | None:
        with contextlib.suppress(FileNotFoundError):
            try:
                with (self._cache.entries.folder / name).open("rb") as file:
                    return _parse_head(name, file)
            except FileNotFoundError:
                raise
            except (OSError, ValueError):
                self._drop_damaged(name)
        return None

    def _drop_damaged(self, name: str) -> None:
        self._cache.count(_DAMAGED)
        self._cache.entries.drop(name)

    def _take(self, places: Sequence[int]) -> dict[int, Tensor]:
        """Returns those frames that are kept and whole."""
        found: dict[int, Tensor] = {}
        for part in self._parts:
            wanted = [place for place in places if place in part.rows and place not in found]
            if not wanted:
                continue
            check_size(len(wanted) * 3 * part.height * part.width, self.path)
            frames = torch.empty(len(wanted), 3, part.height, part.width, dtype=torch.uint8)
            try:
                with (self._cache.entries.folder / part.name).open("rb") as file:
                    for place, frame in zip(wanted, frames, strict=True):
                        _read_frame(file, part, place, memoryview(frame.view(-1).numpy()))
                found.update(zip(wanted, frames, strict=True))
            except FileNotFoundError:  # the folder was emptied
                continue
            except (OSError, ValueError):
                self._drop_damaged(part.name)
        return found

    def _keep(self, numbers: Sequence[int], frames: Tensor, fps: float | None) -> None:
        identity, entries = self._identity, self._cache.entries
        pixels = [memoryview(frame.view(-1).numpy()) for frame in frames.contiguous()]
        index = b"".join(_ENTRY.pack(number, zlib.crc32(data)) for number, data in zip(numbers, pixels, strict=True))
        rate = math.nan if fps is None else fps
        fields = (_MAGIC, self.frames, len(frames), *frames.shape[2:], rate)
        head = _HEAD.pack(*fields, zlib.crc32(_HEAD.pack(*fields, 0) + index))
        name = f"{identity.state}-{hashlib.sha256(index).hexdigest()[:16]}"
        with contextlib.suppress(OSError):  # of another state of the clip, or part of what is kept whole now
            for other in os.listdir(entries.folder / identity.clip):
                stale = not other.startswith((identity.state, "."))
                if stale or (len(frames) == self.frames and other != name and not other.startswith(".")):
                    entries.drop(f"{identity.clip}/{other}")
        entries.put(f"{identity.clip}/{name}", [head, index, *pixels])


def _parse_head(name: str, file: BinaryIO) -> _Part:
    """Returns the head of an entry, whose sizes fit its file; raises ValueError for a damaged one."""
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size:
        raise ValueError("it is broken off")
    *fields, checksum = _HEAD.unpack(head)
    magic, frames, count, height, width, rate = fields
    size = _HEAD.size + count * (_ENTRY.size + 3 * height * width)
    if magic != _MAGIC or 0 in (count, height, width) or size != os.fstat(file.fileno()).st_size:
        raise ValueError("it is damaged")
    index = file.read(count * _ENTRY.size)
    if zlib.crc32(_HEAD.pack(*fields, 0) + index) != checksum:
        raise ValueError("its head is damaged")
    rows = {number: (row, crc) for row, (number, crc) in enumerate(_ENTRY.iter_unpack(index))}
    return _Part(name, frames, height, width, None if math.isnan(rate) else rate, rows)


def _read_frame(file: BinaryIO, part: _Part, place: int, into: memoryview) -> None:
    row, checksum = part.rows[place]
    file.seek(part.begin + row * len(into))
    if file.readinto(into) != len(into) or zlib.crc32(into) != checksum:  # type: ignore[attr-defined]
        raise ValueError("a frame is damaged")
