"""Clips on disk: a folder of frames, or an array in a file; lists of them with labels.

A clip is a folder of pictures in natural order (frame 2 before frame 10), a zip archive of pictures, or a ``.npy``,
``.npz`` or ``.pt`` file with one array, uint8 or in [0, 1], ``[F, 3, H, W]`` or ``[F, H, W, 3]``. Video files need a
decoder, which is not part of this package: ``register_decoder(".mp4", function)`` adds one.

A list file has one line ``path label`` per clip. The label is a number or a name of the label file, a CSV of
``id,name`` with a header.
"""

from __future__ import annotations

import csv
import io
import re
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
ARRAYS = {".npy", ".npz", ".pt"}
_DECODERS: dict[str, Callable[[Path], Tensor]] = {}


class ClipError(ValueError):
    """A clip or a list cannot be used. The message is one sentence that names the path."""

    def __init__(self, text: str) -> None:
        # torch rebuilds an error of a loading process from its whole traceback, whose last line is the message.
        last = text.strip().splitlines()[-1]
        super().__init__(last.removeprefix(f"{type(self).__module__}.{type(self).__name__}: "))


def register_decoder(suffix: str, decode: Callable[[Path], Tensor]) -> None:
    """Lets ``read_clip`` open files with this suffix: ``decode(path)`` returns uint8 ``[F, 3, H, W]``."""
    if not suffix.startswith("."):
        raise ValueError(f"suffix: expected one with its dot, such as '.mp4', got {suffix!r}")
    _DECODERS[suffix.lower()] = decode


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _picture(source: Path | io.BytesIO, name: str) -> np.ndarray:
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise ClipError("reading pictures needs pillow; install it with: pip install 'alt-kernels[models]'") from None
    try:
        with Image.open(source) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise ClipError(f"{name}: not a readable picture ({_reason(error)})") from None


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:  # without "[Errno 2]" and the path, which the sentence has
        return error.strerror
    text = str(error).splitlines()[0] if str(error) else ""
    return text[:120].rstrip(".") or type(error).__name__


def _stack(pictures: Iterable[tuple[str, np.ndarray]], where: Path) -> Tensor:
    frames: list[np.ndarray] = []
    for name, picture in pictures:
        if frames and picture.shape != frames[0].shape:
            (h, w), (first_h, first_w) = picture.shape[:2], frames[0].shape[:2]
            raise ClipError(f"{where}: frames of one size are expected, {name} is {h} x {w}, not {first_h} x {first_w}")
        frames.append(picture)
    if not frames:
        raise ClipError(f"{where}: no pictures in it ({', '.join(sorted(PICTURES))} are read)")
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).contiguous()


def _read_folder(path: Path) -> Tensor:
    files = sorted((f for f in path.iterdir() if f.suffix.lower() in PICTURES), key=lambda f: _natural(f.name))
    return _stack(((f.name, _picture(f, str(f))) for f in files), path)


def _read_zip(path: Path) -> Tensor:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [n for n in archive.namelist() if Path(n).suffix.lower() in PICTURES]
            names.sort(key=_natural)
            return _stack(((n, _picture(io.BytesIO(archive.read(n)), f"{path}: {n}")) for n in names), path)
    except (zipfile.BadZipFile, OSError) as error:
        raise ClipError(f"{path}: not a readable archive ({_reason(error)})") from None


def _load_array(path: Path) -> Tensor:
    try:
        if path.suffix.lower() == ".pt":
            found = torch.load(path, map_location="cpu", weights_only=True)
            if not isinstance(found, Tensor):
                raise ClipError(f"{path}: one tensor is expected in it, got {type(found).__name__}")
            return found
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            with loaded:
                if len(loaded.files) != 1:
                    raise ClipError(f"{path}: one array is expected in it, got {len(loaded.files)}")
                loaded = loaded[loaded.files[0]]
        if not isinstance(loaded, np.ndarray):
            raise ClipError(f"{path}: one array is expected in it, got {type(loaded).__name__}")
        return torch.from_numpy(np.ascontiguousarray(loaded))
    except ClipError:
        raise
    except Exception as error:  # damaged bytes can make the loaders raise anything
        raise ClipError(f"{path}: not a readable array file ({_reason(error)})") from None


def as_frames(array: Tensor, name: str = "clip") -> Tensor:
    """Returns an array as frames, uint8 ``[F, 3, H, W]``; raises ClipError for another shape, type or range."""
    if array.ndim == 4 and array.shape[1] != 3 and array.shape[3] == 3:
        array = array.permute(0, 3, 1, 2)
    if array.ndim != 4 or array.shape[1] != 3 or 0 in array.shape[2:]:
        raise ClipError(f"{name}: frames [F, 3, H, W] or [F, H, W, 3] are expected, got {list(array.shape)}")
    if array.shape[0] == 0:
        raise ClipError(f"{name}: no frames in it")
    if array.is_floating_point():
        low, high = array.aminmax()
        if not (low >= 0 and high <= 1):  # also true of nan
            raise ClipError(f"{name}: floating-point frames lie in [0, 1], got {float(low):g} to {float(high):g}")
        array = (array.to(torch.float32) * 255.0).round().to(torch.uint8)
    elif array.dtype != torch.uint8:
        raise ClipError(f"{name}: uint8 or floating-point frames are expected, got {array.dtype}")
    return array.contiguous()


def read_clip(path: str | Path) -> Tensor:
    """Reads a clip from disk, uint8 ``[F, 3, H, W]``.

    Raises:
        ClipError: the path is missing, the file cannot be read, or its array has another shape.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if path.is_dir():
        frames = _read_folder(path)
    elif not path.exists():
        raise ClipError(f"{path}: no such file or folder")
    elif suffix == ".zip":
        frames = _read_zip(path)
    elif suffix in ARRAYS:
        frames = as_frames(_load_array(path), str(path))
    elif suffix in _DECODERS:
        frames = as_frames(_DECODERS[suffix](path), str(path))
    else:
        known = ", ".join(sorted({".zip", *ARRAYS, *_DECODERS}))
        raise ClipError(f"{path}: a folder of pictures or a file of {known} is expected; decode videos to frames first")
    return frames


# --- lists ---


class Entry(NamedTuple):
    path: Path
    label: int


def read_labels(path: str | Path) -> list[str]:
    """Reads class names, in the order of their numbers, from a CSV with the columns ``id`` and ``name``."""
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ClipError(f"{path}: not a readable label file ({_reason(error)})") from None
    try:
        names = {int(row["id"]): row["name"] for row in rows}
    except (KeyError, TypeError, ValueError):
        raise ClipError(f"{path}: a CSV with the columns id (a number) and name is expected") from None
    if not rows or sorted(names) != list(range(len(rows))):
        raise ClipError(f"{path}: every number from 0 up once is expected in the column id")
    return [names[i] for i in range(len(rows))]


def read_list(path: str | Path, root: str | Path | None = None, names: Sequence[str] | None = None) -> list[Entry]:
    """Reads lines ``path label``; paths are relative to ``root`` (default: the list's folder) and may hold spaces.

    The label is the last word, a number. With ``names`` it may also be a name: the longest one that ends the line.
    """
    path = Path(path)
    base = path.parent if root is None else Path(root)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ClipError(f"{path}: not a readable list file ({_reason(error)})") from None
    longest = sorted(enumerate(names or []), key=lambda pair: -len(pair[1]))
    found = []
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        clip, _, word = line.rpartition(" ")
        if word.isdigit():
            label = int(word)
        else:
            match = next(((i, name) for i, name in longest if line.endswith(" " + name)), None)
            if match is None:
                raise ClipError(f"{path}, line {number}: 'path label' is expected, got {line[:80]!r}")
            label, clip = match[0], line[: -len(match[1])]
        if names is not None and label >= len(names):
            raise ClipError(f"{path}, line {number}: a label below {len(names)} is expected, got {label}")
        found.append(Entry(base / clip.strip(), label))
    if not found:
        raise ClipError(f"{path}: no clips listed in it")
    return found


def write_clip(path: Path, frames: Tensor) -> None:
    """Writes a clip, uint8 ``[F, 3, H, W]``, without loss: an array file if the suffix says so, else a PNG folder."""
    frames = as_frames(frames.cpu(), "frames")
    suffix = path.suffix.lower()
    path.parent.mkdir(parents=True, exist_ok=True)
    if suffix == ".npy":
        np.save(path, frames.numpy())
    elif suffix == ".npz":
        np.savez_compressed(path, frames=frames.numpy())
    elif suffix == ".pt":
        torch.save(frames, path)
    elif suffix:
        raise ValueError(f"path: expected a folder, or a file of {', '.join(sorted(ARRAYS))}, got {path.name!r}")
    else:
        from PIL import Image

        path.mkdir(exist_ok=True)
        for i, frame in enumerate(frames.permute(0, 2, 3, 1).numpy()):
            Image.fromarray(frame).save(path / f"{i:05d}.png")


def write_clips(
    folder: str | Path, clips: Tensor, labels: Sequence[int] | Tensor, names: Sequence[str], form: str = "frames"
) -> Path:
    """Writes clips, uint8 ``[N, F, 3, H, W]``, with a label file and a list file, ``list.txt``, whose path it returns.

    ``form``: ``frames`` (one folder of PNGs per clip), ``npy``, ``npz`` or ``pt``.
    """
    if form not in ("frames", "npy", "npz", "pt"):
        raise ValueError(f"form: expected one of frames, npy, npz, pt, got {form!r}")
    if len(clips) != len(labels):
        raise ValueError(f"labels: expected one for each of {len(clips)} clips, got {len(labels)}")
    folder = Path(folder)
    suffix = "" if form == "frames" else f".{form}"
    lines = []
    for i, (frames, label) in enumerate(zip(clips, torch.as_tensor(labels).tolist(), strict=True)):
        name = f"clips/{i:06d}{suffix}"
        write_clip(folder / name, frames)
        lines.append(f"{name} {label}")
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("id", "name"), *enumerate(names)])
    (folder / "list.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
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
        ClipError: a folder or file is missing or cannot be used.
    """

    def __init__(self, list_file: str | Path, labels: str | Path | None = None, root: str | Path | None = None) -> None:
        base = Path() if root is None else Path(root)
        if not base.is_dir():
            raise ClipError(f"{base}: there is no such folder")
        names = None if labels is None else read_labels(base / labels)
        self.entries = read_list(base / list_file, root, names)
        self.labels = torch.tensor([entry.label for entry in self.entries])
        self.class_names = names or [str(i) for i in range(int(self.labels.max()) + 1)]
        self._frames = torch.zeros(len(self.entries), dtype=torch.int64).share_memory_()  # loading processes write it

    def __len__(self) -> int:
        return len(self.entries)

    def video(self, index: int) -> Tensor:
        """Returns all frames of a clip, uint8 ``[F, 3, H, W]``."""
        frames = read_clip(self.entries[index].path)
        self._frames[index] = len(frames)
        return frames

    def describe_short(self, frames: int) -> str | None:
        """Returns a line that names the clips read so far with fewer than ``frames`` frames, or None."""
        short = ((self._frames > 0) & (self._frames < frames)).nonzero()[:, 0].tolist()
        if not short:
            return None
        named = ", ".join(str(self.entries[i].path) for i in short[:5]) + (", ..." if len(short) > 5 else "")
        return f"{len(short)} of {len(self)} clips have fewer than {frames} frames, which repeat in order: {named}"
