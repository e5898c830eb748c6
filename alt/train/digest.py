"""A digest at the end of a checkpoint: any changed byte of the file is found before anything in it is used.

The zip file of ``torch.save`` gets a comment, ``sha256:`` and 64 hexadecimal digits. It is the SHA-256 of all bytes
before the comment, headers and padding included. Readers of zip files skip comments. A file beside the checkpoint
could not be replaced together with it.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path
from typing import IO

_MARK = b"sha256:"
_COMMENT = len(_MARK) + 64
_END, _END_SIZE = b"PK\x05\x06", 22  # the last record of a zip file; its last two bytes are the comment's length


def append_digest(file: IO[bytes]) -> None:
    """Ends a zip file, open for reading and writing, with a comment that holds the digest of the bytes before it."""
    file.seek(-2, os.SEEK_END)
    file.write(_COMMENT.to_bytes(2, "little"))
    digest = _hash(file, file.seek(0, os.SEEK_END))
    file.seek(0, os.SEEK_END)
    file.write(_MARK + digest)


def check_digest(path: Path) -> bool:
    """Returns True for a file that fits its digest, False for a whole zip file that was written without one.

    The checksums of the second kind's members are compared instead. They do not cover headers.

    Raises:
        OSError: it cannot be read. ValueError: a byte is changed, or a part is missing; the message is a phrase.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _COMMENT))
        comment = file.read()
        if comment.startswith(_MARK):
            if _MARK + _hash(file, size - _COMMENT) != comment:
                raise ValueError("its content does not fit its SHA-256 digest")
            return True
    last = comment[-_END_SIZE:]
    if not (last.startswith(_END) and last.endswith(b"\0\0")):
        raise ValueError("its end is missing or changed")
    try:
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip()
    except OSError:
        raise
    except Exception as error:  # zipfile raises a dozen kinds on damaged headers
        raise ValueError(f"a header is changed ({type(error).__name__})") from None
    if wrong is not None:
        raise ValueError(f"the checksum of {wrong} is wrong")
    return False


def _hash(file: IO[bytes], size: int) -> bytes:
    """Returns the SHA-256 of the first ``size`` bytes, in hexadecimal."""
    digest = hashlib.sha256()
    file.seek(0)
    while size > 0 and (block := file.read(min(size, 1 << 20))):
        digest.update(block)
        size -= len(block)
    return digest.hexdigest().encode()
