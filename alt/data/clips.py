"""Clips on disk: videos, folders of frames, or arrays in files; lists of them with labels.

A clip is a video file (extra ``video``), a folder of pictures in natural order (frame 2 before frame 10), a zip archive
of pictures, or a ``.npy``, ``.npz`` or ``.pt`` file with one array, uint8 or in [0, 1], ``[F, 3, H, W]`` or
``[F, H, W, 3]``. ``register_decoder(".xyz", function)`` adds another kind.

A list file has one line ``path label`` per clip; other forms are in :func:`alt.data.clip_lists.read_list`. The label is
a number or a name of the label file, a CSV of ``id,name`` with a header.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from alt.errors import refuse_unordered
from alt.files import refuse_special

from .array_videos import ARRAYS
from .clip_lists import Entry, SetList, as_listed, check_entries, read_labels, read_list, write_labels, write_list
from .frame_cache import FrameCache
from .seeds import derive_seed
from .video import ClipError, Video, as_frames
from .videos import naming, open_video, read_clip, readable_suffixes, register_decoder

__all__ = [
    "ClipError",
    "ClipFiles",
    "Entry",
    "as_frames",
    "naming",
    "open_video",
    "read_clip",
    "read_labels",
    "read_list",
    "register_decoder",
    "write_clip",
    "write_clips",
]
_ATTEMPTS = 20  # clips read in place of a damaged one, itself included


def write_clip(path: Path, frames: Tensor) -> None:
    """Writes a clip, uint8 ``[F, 3, H, W]``, without loss: an array file if the suffix says so, else a PNG folder."""
    frames = as_frames(frames.cpu(), "frames")
    suffix = path.suffix.lower()
    path.parent.mkdir(parents=True, exist_ok=True)
    if suffix == ".npy":
        np.save(refuse_special(path), frames.numpy())
    elif suffix == ".npz":
        np.savez_compressed(refuse_special(path), frames=frames.numpy())
    elif suffix == ".pt":
        torch.save(frames, refuse_special(path))
    elif suffix:
        raise ValueError(f"path: expected a folder, or a file of {', '.join(sorted(ARRAYS))}, got {path.name!r}")
    else:
        from PIL import Image

        path.mkdir(exist_ok=True)
        for i, frame in enumerate(frames.permute(0, 2, 3, 1).numpy()):
            Image.fromarray(frame).save(refuse_special(path / f"{i:05d}.png"))


def write_clips(
    folder: str | Path, clips: Tensor, labels: Sequence[int] | Tensor, names: Sequence[str], form: str = "frames"
) -> Path:
    """Writes clips, uint8 ``[N, F, 3, H, W]``, with a label file and a list file, ``list.txt``, whose path it returns.

    ``form``: ``frames`` (one folder of PNGs per clip), ``npy``, ``npz`` or ``pt``.
    """
    if form not in ("frames", "npy", "npz", "pt"):
        raise ValueError(f"form: expected one of frames, npy, npz, pt, got {form!r}")
    refuse_unordered(names, "names")
    if len(clips) != len(labels):
        raise ValueError(f"labels: expected one for each of {len(clips)} clips, got {len(labels)}")
    folder = Path(folder)
    suffix = "" if form == "frames" else f".{form}"
    entries = []
    for i, (frames, label) in enumerate(zip(clips, torch.as_tensor(labels).tolist(), strict=True)):
        name = f"clips/{i:06d}{suffix}"
        write_clip(folder / name, frames)
        entries.append(Entry(folder / name, label))
    write_labels(folder / "labels.csv", names)
    return write_list(folder / "list.txt", entries, folder)


class ClipFiles:
    """The clips of a list file: videos, their labels and the names of the classes.

    A clip with fewer frames than a model reads is no error: its frames repeat in order (:func:`sample_test`). A damaged
    clip is replaced by another one, which is a function of the list and of the clip's number: a resumed run reads the
    same clips. :meth:`describe` names the short and the replaced clips read so far, by any process.

    Args:
        list_file: lines ``path label``, or a list that was read already (:mod:`alt.data.set_formats`).
        labels: CSV of ``id,name``; None: the labels are numbers. Not with a list that was read.
        root: the list, the label file and the clips are relative to this folder. None: clips are relative to the
            folder of the list, and the two files to the working directory.
        damaged: "replace" by another clip, or raise an "error".
        labelled: False: labels are not read, and lines of the list may be paths alone.
        cache: keeps decoded frames.

    Attributes:
        labels: ``[N]`` int64, -1 where clips are not labelled. class_names: in the order of the labels. entries: path
            and label of every clip.
        targets: ``[N, C]`` of 0 and 1 in a set with several labels per clip, None in others.

    Raises:
        ClipError: a folder or file is missing or cannot be used. Missing clips are counted, and the first are named.
    """

    def __init__(
        self,
        list_file: str | Path | SetList,
        labels: str | Path | None = None,
        root: str | Path | None = None,
        *,
        damaged: Literal["replace", "error"] = "error",
        labelled: bool = True,
        cache: FrameCache | None = None,
    ) -> None:
        names: list[str] | None
        self._missing, self.cache = 0, cache
        if isinstance(list_file, SetList):
            self.entries, names, where, self._missing = list_file
        else:
            base = Path() if root is None else Path(root)
            if not base.is_dir():
                raise ClipError(f"{base}: there is no such folder")
            names = None if labels is None else read_labels(base / labels)
            where = base / list_file
            self.entries = read_list(where, root, names, labelled=labelled)
        check_entries(self.entries, where, lambda path: path.suffix.lower() in readable_suffixes())
        self._where = Path(where)
        self.labels = torch.tensor([entry.label for entry in self.entries])
        self.class_names = names or [str(i) for i in range(int(self.labels.max()) + 1)]
        self.targets = _targets(self.entries, len(self.class_names)) if labelled else None
        self.damaged = damaged
        # Loading processes write into these.
        self._frames = torch.zeros(len(self.entries), dtype=torch.int64).share_memory_()
        self._replaced = torch.zeros(len(self.entries), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.entries)

    def video(self, index: int) -> Video:
        """Opens a clip."""
        entry = self.entries[index]
        video = open_video(entry.path) if self.cache is None else self.cache.open(entry.path)
        try:
            clip = as_listed(video, entry)
        except ClipError:
            video.close()
            raise
        self._frames[index] = clip.frames
        return clip

    def take(self, index: int, make: Callable[[Video], Tensor], among: Tensor | None = None) -> tuple[Tensor, int]:
        """Returns ``make(video)`` of a clip, and the clip's number: of another one if this one is damaged.

        Args:
            index: of the clip. make: reads frames of an open video.
            among: numbers of the clips that may replace it; None: any.

        Raises:
            ClipError: the clip is damaged and is not replaced, or everything that was tried in its place is damaged.
        """
        place = index
        for attempt in range(_ATTEMPTS):
            try:
                with naming(self.name(place)), self.video(place) as video:
                    return make(video), place
            except ClipError as error:
                if self.damaged == "error":
                    raise
                self._replaced[place] = True
                last = error
            pool = len(self) if among is None else len(among)
            drawn = derive_seed("replacement", seed=self._seed, clip=index, step=attempt) % pool
            place = drawn if among is None else int(among[drawn])
        raise ClipError(f"{last}; {_ATTEMPTS - 1} clips in place of {self.name(index)} are damaged as well")

    @functools.cached_property
    def _seed(self) -> int:
        """A number of the list: of the names and labels of its clips."""
        lines = "\n".join(" ".join(map(str, (e.path.name, *(e.span or ()), e.label))) for e in self.entries)
        return int.from_bytes(hashlib.sha256(lines.encode("utf-8", "surrogateescape")).digest()[:8], "little")

    def name(self, index: int) -> str:
        """Returns the path of a clip, for messages."""
        return str(self.entries[index].path)

    def names_below(self, root: str | Path | None) -> list[str]:
        """Returns what the list calls each clip: its path, relative to ``root``, and its first and last frame."""
        paths = [os.path.relpath(entry.path, root) for entry in self.entries]
        return [" ".join(map(str, (path, *(e.span or ())))) for path, e in zip(paths, self.entries, strict=True)]

    @property
    def replaced(self) -> list[int]:
        """Returns the numbers of the clips that were damaged and replaced so far."""
        return self._replaced.nonzero()[:, 0].tolist()

    def describe(self, frames: int) -> list[str]:
        """Returns lines on clips that were left out, have fewer than ``frames`` frames, or were replaced.

        The last two are of the clips read so far.
        """
        short = ((self._frames > 0) & (self._frames < frames)).nonzero()[:, 0].tolist()
        lines = []
        if self._missing:
            total = len(self) + self._missing
            lines.append(f"{self._missing} of the list's {total} clips are not there and were left out")
        if short:
            lines.append(self._count(short, f"have fewer than {frames} frames, which repeat in order"))
        if self.replaced:
            lines.append(self._count(self.replaced, "are damaged and were replaced by others"))
        return lines

    def describe_cache(self) -> list[str]:
        """Returns lines on the cache of frames, and on the frames of the list that were read so far."""
        return [] if self.cache is None else [f"{self._where.name}: {line}" for line in self.cache.describe()]

    def _count(self, numbers: list[int], what: str) -> str:
        named = ", ".join(self.name(i) for i in numbers[:5]) + (", ..." if len(numbers) > 5 else "")
        return f"{len(numbers)} of {len(self)} clips {what}: {named}"


def _targets(entries: Sequence[Entry], classes: int) -> Tensor | None:
    """Returns which classes a clip has, ``[N, C]``, or None if every clip has one."""
    if all(entry.labels is None for entry in entries):
        return None
    targets = torch.zeros(len(entries), classes, dtype=torch.int64)
    for row, entry in zip(targets, entries, strict=True):
        row[list(entry.labels or ())] = 1
    return targets
