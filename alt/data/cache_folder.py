"""A folder of entries that can be made again: bounded, shared by processes, and never the reason that a run ends.

An entry is written beside its place and renamed, so a killed process leaves a whole entry or none. Nothing is synced to
disk: whoever reads an entry compares checksums. Nothing is thrown out to make room: runs read all clips in turn, so
what was thrown out last would be needed next.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch

from alt.errors import UserError
from alt.files import describe_error, replacing

__all__ = ["CacheFolder"]

GIB = 1 << 30
_TAG = "CACHEDIR.TAG"
_SIGNATURE = "Signature: 8a477f597d28d172789f06886806bc55\n"  # programs that make backups leave such folders out
_ABOUT = "# Entries of a cache of alt-kernels. The folder may be deleted at any time.\n"
_SPARE = GIB  # left free on the disk, for checkpoints
_RECOUNT = GIB  # bytes that this run writes before it counts what others wrote
_ABANDONED = 3600.0  # seconds after which an unfinished entry belongs to a process that was killed
_USED, _WRITTEN, _STOPPED, _FULL = range(4)


class CacheFolder:
    """A folder that holds at most ``limit`` bytes of entries. Loading processes share the count with their parent.

    Other runs may fill the same folder. Each counts it again after every GiB that it writes, so together they go past
    the limit by at most that much each.

    Args:
        folder: is created. limit: in bytes. setting: that names the folder, for messages.

    Raises:
        UserError: the folder cannot be written, or holds other files than a cache's.
    """

    def __init__(self, folder: str | Path, limit: int, setting: str) -> None:
        self.folder, self.limit, self.setting = Path(folder).absolute(), limit, setting
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not self._tag.exists():
                if any(not name.startswith(".") and name != _TAG for name in os.listdir(self.folder)):
                    raise UserError(f"{setting}: expected an empty folder or a cache, and {folder} holds other files.")
                self._mark()
        except OSError as error:
            raise UserError(f"{setting}: {folder} cannot be written ({describe_error(error)}).") from None
        # Loading processes write into it.
        self._state = torch.zeros(4, dtype=torch.int64).share_memory_()
        self._count()

    @property
    def _tag(self) -> Path:
        return self.folder / _TAG

    def _mark(self) -> None:
        with replacing(self._tag, "the mark of the cache") as partial:
            partial.write_text(_SIGNATURE + _ABOUT, encoding="utf-8")

    @property
    def used(self) -> int:
        """Returns the bytes of the entries, as last counted, and of those that this run wrote since."""
        return int(self._state[_USED])

    @property
    def stopped(self) -> bool:
        """Returns True once an entry could not be written. Then no further one is tried."""
        return bool(self._state[_STOPPED])

    def has_room(self, size: int) -> bool:
        """Returns whether an entry of so many bytes may be written: within the limit, with 1 GiB left on the disk."""
        if self.stopped:
            return False
        fits = self.used + size <= self.limit
        with contextlib.suppress(OSError):  # the folder is gone; writing makes it again
            fits = fits and shutil.disk_usage(self.folder).free - size >= _SPARE
        if not fits:
            self._state[_FULL] = 1
        return fits

    def put(self, name: str, parts: Iterable[bytes | memoryview]) -> None:
        """Writes an entry whole, or not at all if there is no room. It warns once if the disk refuses.

        Args:
            name: path below the folder. parts: of its content.
        """
        blocks = list(parts)
        size = sum(len(block) for block in blocks)
        if self.stopped:
            return
        try:
            if not self._tag.exists():  # somebody emptied it
                self._mark()
                self._count()
            if not self.has_room(size):
                return
            with replacing(self.folder / name, "an entry", sync=False) as partial, partial.open("wb") as file:
                file.writelines(blocks)
        except FileNotFoundError:  # emptied at this moment
            return
        except OSError as error:
            self._stop(os.strerror(error.errno) if error.errno else describe_error(error))
            return
        self._state[_USED] += size
        self._state[_WRITTEN] += size
        if int(self._state[_WRITTEN]) > _RECOUNT:
            self._count()

    def _stop(self, reason: str) -> None:
        if not self.stopped:  # by another loading process
            self._state[_STOPPED] = 1
            text = f"{self.setting}: nothing more is kept in {self.folder} ({reason}); the run goes on without it."
            warnings.warn(text, stacklevel=3)

    def drop(self, name: str) -> None:
        """Removes an entry, if it is there."""
        path = self.folder / name
        with contextlib.suppress(OSError):
            size = path.stat().st_size
            path.unlink()
            self._state[_USED] -= size

    def _count(self) -> None:
        """Counts the entries, and removes what killed processes left half-written."""
        self._state[_WRITTEN] = 0
        total, old = 0, time.time() - _ABANDONED
        for parent, _, names in os.walk(self.folder):
            for name in names:
                with contextlib.suppress(OSError):
                    path = os.path.join(parent, name)
                    found = os.stat(path)
                    if name.endswith(".tmp") and found.st_mtime < old:
                        os.unlink(path)
                    else:
                        total += found.st_size
        self._state[_USED] = total

    def describe(self) -> str:
        """Returns how full the folder is, in words."""
        state = ", and could not be written" if self.stopped else ", and is full" if self._state[_FULL] else ""
        return f"{self.folder} holds {self.used / GIB:.2f} of {self.limit / GIB:.0f} GiB{state}"
