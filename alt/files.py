"""Atomic file writes: the previous file survives any failure."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["replacing"]


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], what: str) -> Iterator[Path]:
    """Yields the path of a temporary file in the same folder, which replaces ``path`` at the end.

    The data is synced to disk before ``os.replace`` swaps the files in one step. A reader, a full disk, Ctrl-C or a
    killed process find either the old file or the new one, whole. The temporary file is removed on any error.

    Args:
        path: the file to write. A missing folder is created.
        what: the thing being written, for the error message: "the model".

    Raises:
        OSError: the file could not be written (disk full, no permission). The message is one sentence; errno is kept.
    """
    target = Path(path)
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        number, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
        os.close(number)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        os.chmod(temporary, _default_mode())  # mkstemp gives 0600
        os.replace(temporary, target)
        temporary = None
        _sync_folder(target.parent)
    except OSError as error:
        reason = error.strerror or str(error)
        kept = ", the previous file is unchanged" if target.exists() else ""
        raise OSError(error.errno, f"could not save {what} to {target}: {reason}{kept}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _default_mode() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _sync_folder(folder: Path) -> None:
    """Syncs a folder so that the rename reaches the disk. Some systems cannot open a folder; then nothing is done."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
