"""Clips that are one array in a file: ``.npy``, ``.npz`` and ``.pt``. Only the frames asked for are kept.

Sizes that a file declares are compared with the file, and with :func:`alt.files.decoded_limit`, before memory is taken.
"""

from __future__ import annotations

import contextlib
import io
import math
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from alt.files import decoded_limit, read_torch, require_file, tensor_bytes

from .video import ClipError, Video, as_frames, check_method, check_size, with_path

__all__ = ["ARRAYS", "NumpyVideo", "TorchVideo", "open_array"]

ARRAYS = {".npy", ".npz", ".pt"}
_HEADER = 10_000  # bytes of an array's header, as numpy.load limits it


def open_array(path: Path) -> Video:
    """Opens the one array of a file, ``[F, 3, H, W]`` or ``[F, H, W, 3]``, uint8 or in [0, 1]."""
    return TorchVideo(path) if path.suffix.lower() == ".pt" else NumpyVideo(path)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except ClipError:
        raise
    except Exception as error:  # damaged bytes can make the loaders raise anything
        raise ClipError(with_path(path, "not a readable array file", error)) from None


class TorchVideo(Video):
    """A tensor of ``torch.save``, which is mapped, not read."""

    def __init__(self, path: Path) -> None:
        with _naming(path):
            found = read_torch(path, decoded_limit())
            if not isinstance(found, Tensor):
                raise ClipError(f"{path}: one tensor is expected in it, got {type(found).__name__}")
            needed, held = tensor_bytes(found), found.untyped_storage().nbytes()  # refuses kinds without plain values
            if needed > held:  # an expanded tensor: a few bytes that call themselves terabytes
                raise ValueError(f"its shape {list(found.shape)} needs {needed} bytes, and the file has {held}")
        self._array = found.detach()
        super().__init__(path, _check_shape(list(found.shape), path))

    def _read(self, places: Sequence[int]) -> Tensor:
        with _naming(self.path):
            check_size(len(places) * tensor_bytes(self._array[0]), self.path)
            return as_frames(self._array[list(places)], str(self.path))


class NumpyVideo(Video):
    """An array of ``numpy.save`` or ``numpy.savez``. The bytes of a frame are read where they lie."""

    def __init__(self, path: Path) -> None:
        with _naming(path), _open_stream(path) as (stream, size):
            shape, self._fortran, self._dtype = _read_header(stream)
            if self._dtype.hasobject:
                raise ValueError("it holds objects, not numbers")
            data = math.prod(shape) * self._dtype.itemsize
            if data > size:
                raise ValueError(f"its shape {list(shape)} needs {data} bytes, and the file has {size}")
            self._begin = stream.tell()
        self._shape = shape
        super().__init__(path, _check_shape(list(shape), path))

    def _read(self, places: Sequence[int]) -> Tensor:
        count = math.prod(self._shape[1:])
        rows = self.frames if self._fortran else len(places)  # columns first: the values of a frame lie apart
        check_size(rows * count * self._dtype.itemsize, self.path)
        with _naming(self.path), _open_stream(self.path) as (stream, _):
            stream.seek(self._begin)
            if self._fortran:
                flat = np.frombuffer(_take(stream, rows * count * self._dtype.itemsize), self._dtype)
                picked = flat.reshape(self._shape, order="F")[list(places)]
            else:
                picked = np.empty((rows, *self._shape[1:]), self._dtype)
                length = count * self._dtype.itemsize
                for row, place in enumerate(places):
                    stream.seek(self._begin + place * length)
                    picked[row] = np.frombuffer(_take(stream, length), self._dtype).reshape(self._shape[1:])
            if places[-1] == self.frames - 1:
                stream.read(1)  # an archive compares its checksum at the end
            native = picked.dtype.newbyteorder("=")
            return as_frames(torch.from_numpy(np.ascontiguousarray(picked, native)), str(self.path))


def _take(stream: IO[bytes], length: int) -> bytes:
    data = stream.read(length)
    if len(data) < length:
        raise ValueError("it is broken off")
    return data


def _check_shape(shape: list[int], path: Path) -> int:
    """Returns the number of frames of an array of such a shape."""
    if len(shape) == 4 and shape[0] == 0:
        raise ClipError(f"{path}: no frames in it")
    if len(shape) != 4 or (shape[1] != 3 and shape[3] != 3) or 0 in shape:
        raise ClipError(f"{path}: frames [F, 3, H, W] or [F, H, W, 3] are expected, got {shape}")
    return shape[0]


@contextlib.contextmanager
def _open_stream(path: Path) -> Iterator[tuple[IO[bytes], int]]:
    """Yields the bytes of the one array of a file, and their number."""
    if path.suffix.lower() == ".npy":
        found = require_file(path)
        with found.open("rb") as file:
            yield file, found.stat().st_size
        return
    with zipfile.ZipFile(require_file(path)) as archive:
        members = archive.infolist()
        if len(members) != 1:
            raise ClipError(f"{path}: one array is expected in it, got {len(members)}")
        check_method(members[0])
        with archive.open(members[0]) as stream:
            yield stream, members[0].file_size


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Returns (shape, whether columns come first, dtype) and leaves the stream at the first value."""
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"a plain array is expected, this one is of version {version}")
    count = 2 if version == (1, 0) else 4
    length = stream.read(count)
    if len(length) < count or (header := int.from_bytes(length, "little")) > _HEADER:
        raise ValueError("its header is broken off or too long")
    begin = io.BytesIO(length + stream.read(header))
    parse: Any = np.lib.format.read_array_header_1_0 if count == 2 else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = parse(begin)
    if any(side < 0 for side in shape):
        raise ValueError(f"its shape is {list(shape)}")
    return shape, fortran, dtype
