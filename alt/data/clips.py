"""Clips on disk: a folder of frames, or an array in a file; lists of them with labels.

A clip is a folder of pictures in natural order (frame 2 before frame 10), a zip archive of pictures, or a ``.npy``,
``.npz`` or ``.pt`` file with one array, uint8 or in [0, 1], ``[F, 3, H, W]`` or ``[F, H, W, 3]``. Video files need a
decoder, which is not part of this package: ``register_decoder(".mp4", function)`` adds one.

A list file has one line ``path label`` per clip. The label is a number or a name of the label file, a CSV of
``id,name`` with a header.
"""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from alt.errors import refuse_unordered
from alt.files import describe_error, refuse_special, replacing

from .clip_lists import Entry, check_entries, read_labels, read_list
from .clip_readers import ARRAYS, ClipError, as_frames, read_array_file, read_folder, read_zip

__all__ = [
    "ClipError",
    "ClipFiles",
    "Entry",
    "as_frames",
    "read_clip",
    "read_labels",
    "read_list",
    "register_decoder",
    "write_clip",
    "write_clips",
]

_DECODERS: dict[str, Callable[[Path], Tensor]] = {}


def register_decoder(suffix: str, decode: Callable[[Path], Tensor]) -> None:
    """Lets ``read_clip`` open files with this suffix: ``decode(path)`` returns uint8 ``[F, 3, H, W]``."""
    if not suffix.startswith("."):
        raise ValueError(f"suffix: expected one with its dot, such as '.mp4', got {suffix!r}")
    _DECODERS[suffix.lower()] = decode


def read_clip(path: str | Path) -> Tensor:
    """Reads a clip from disk, uint8 ``[F, 3, H, W]``.

    Files whose names begin with a dot, and the folder ``__MACOSX`` of an archive, are no frames. Nothing in a file is
    executed, and its size in memory is limited, see :func:`alt.files.decoded_limit`.

    Raises:
        ClipError: the path is missing, the file cannot be read, its array has another shape, or it is too large.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if path.is_dir():
        return read_folder(path)
    if not path.exists():
        raise ClipError(f"{path}: no such file or folder")
    if suffix == ".zip":
        return read_zip(path)
    if suffix in ARRAYS:
        return as_frames(read_array_file(path), str(path))
    if suffix in _DECODERS:
        with naming(path):
            frames = _DECODERS[suffix](path)
        return as_frames(frames, str(path))
    raise ClipError(
        f"{path}: a folder of pictures or a file of {', '.join(sorted(_suffixes()))} is expected; decode videos to "
        "frames first"
    )


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Turns errors in the block into ClipErrors that name the clip, also in a loading process."""
    try:
        yield
    except ClipError:
        raise
    except (ValueError, TypeError, RuntimeError, MemoryError, OSError) as error:
        raise ClipError(f"{path}: {describe_error(error)}") from error


def _suffixes() -> set[str]:
    return {".zip", *ARRAYS, *_DECODERS}


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
    lines = []
    for i, (frames, label) in enumerate(zip(clips, torch.as_tensor(labels).tolist(), strict=True)):
        name = f"clips/{i:06d}{suffix}"
        write_clip(folder / name, frames)
        lines.append(f"{name} {label}")
    with (
        replacing(folder / "labels.csv", "the class names") as partial,
        partial.open("w", newline="", encoding="utf-8") as file,
    ):
        csv.writer(file).writerows([("id", "name"), *enumerate(names)])
    with replacing(folder / "list.txt", "the list of clips") as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "list.txt"


class ClipFiles:
    """The clips of a list file: whole videos, their labels and the names of the classes.

    A clip with fewer frames than a model reads is no error: its frames repeat in order (:func:`sample_test`).
    :meth:`describe_short` names the short clips read so far, by any process.

    Args:
        list_file: lines ``path label``. labels: CSV of ``id,name``; None: the labels are numbers.
        root: the list, the label file and the clips are relative to this folder. None: clips are relative to the
            folder of the list, and the two files to the working directory.

    Attributes:
        labels: ``[N]`` int64. class_names: in the order of the labels. entries: path and label of every clip.

    Raises:
        ClipError: a folder or file is missing or cannot be used. Missing clips are counted, and the first are named.
    """

    def __init__(self, list_file: str | Path, labels: str | Path | None = None, root: str | Path | None = None) -> None:
        base = Path() if root is None else Path(root)
        if not base.is_dir():
            raise ClipError(f"{base}: there is no such folder")
        names = None if labels is None else read_labels(base / labels)
        self.entries = read_list(base / list_file, root, names)
        check_entries(self.entries, base / list_file, lambda path: path.suffix.lower() in _suffixes())
        self.labels = torch.tensor([entry.label for entry in self.entries])
        self.class_names = names or [str(i) for i in range(int(self.labels.max()) + 1)]
        self._frames = torch.zeros(len(self.entries), dtype=torch.int64).share_memory_()  # loading processes write it

    def __len__(self) -> int:
        return len(self.entries)

    def video(self, index: int) -> Tensor:
        """Returns all frames of a clip, uint8 ``[F, 3, H, W]``."""
        path, _, count = self.entries[index]
        frames = read_clip(path)
        if count not in (None, len(frames)):
            raise ClipError(f"{path}: the list gives it {count} frames, and it has {len(frames)}")
        self._frames[index] = len(frames)
        return frames

    def name(self, index: int) -> str:
        """Returns the path of a clip, for messages."""
        return str(self.entries[index].path)

    def describe_short(self, frames: int) -> str | None:
        """Returns a line that names the clips read so far with fewer than ``frames`` frames, or None."""
        short = ((self._frames > 0) & (self._frames < frames)).nonzero()[:, 0].tolist()
        if not short:
            return None
        named = ", ".join(str(self.entries[i].path) for i in short[:5]) + (", ..." if len(short) > 5 else "")
        return f"{len(short)} of {len(self)} clips have fewer than {frames} frames, which repeat in order: {named}"
