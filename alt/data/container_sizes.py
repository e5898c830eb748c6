"""How much of a video file is missing, by the sizes that its container declares.

A file that was not copied to its end is otherwise hard to tell from a short video: decoders read what is there.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO

__all__ = ["find_missing_bytes"]

_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def find_missing_bytes(path: Path) -> int:
    """Returns the bytes that an MP4, Matroska or AVI file lacks at its end; 0 for whole files and other kinds."""
    length = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(12)
        if start[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"styp"):
            end = _end_of_boxes(file, length)
        elif start[:4] == b"RIFF":
            end = 8 + int.from_bytes(start[4:8], "little")
        elif start[:4] == _EBML:
            end = _end_of_segment(file)
        else:
            return 0
    return max(0, end - length)


def _end_of_boxes(file: IO[bytes], length: int) -> int:
    """Returns where the last box of an MP4 file ends (ISO 14496-12, section 4.2)."""
    at = 0
    while at + 8 <= length:
        file.seek(at)
        head = file.read(16)
        size = int.from_bytes(head[:4], "big")
        if size == 1:
            size = int.from_bytes(head[8:16], "big")
        if size == 0:  # up to the end of the file
            return length
        if size < 8 or not head[4:8].isalnum():  # no box: bytes behind the last one
            return length
        at += size
    return at


def _end_of_segment(file: IO[bytes]) -> int:
    """Returns where the segment of a Matroska file ends (RFC 8794, sections 4 and 5)."""
    file.seek(4)
    size = _read_size(file)
    if size is None:
        return 0
    file.seek(file.tell() + size)
    if file.read(4) != _SEGMENT:
        return 0
    size = _read_size(file)
    return 0 if size is None else file.tell() + size


def _read_size(file: IO[bytes]) -> int | None:
    """Returns an element's size, None if it is unknown."""
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    count = 8 - first[0].bit_length()  # further bytes
    value = int.from_bytes(bytes([first[0] & (1 << (7 - count)) - 1]) + file.read(count), "big")
    return None if value == (1 << 7 * (count + 1)) - 1 else value
