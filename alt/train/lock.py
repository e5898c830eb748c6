"""One run at a time in a folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from alt.errors import UserError, one_line, printable

from .checkpoint import WriteError
from .processes import is_first_process

NAME = ".lock"


@contextlib.contextmanager
def hold_folder(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Keeps other runs out of a folder, which is created; one in which nothing was written is removed again.

    The lock is the system's and ends with the process that holds it: a file left by a killed run does not matter, and
    loading processes do not inherit it. Only the first process of a run takes it.

    Args:
        folder: of the run. say: receives a line if the file system has no locks.

    Raises:
        UserError: another process has a run in the folder. WriteError: the folder cannot be written.
    """
    if not is_first_process():
        yield
        return
    created = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        number = os.open(folder / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise WriteError(f"The folder {folder} cannot be written: {error.strerror or one_line(error)}.") from error
    try:
        _take(number, folder, say)
        yield
    finally:
        if created and [path.name for path in folder.iterdir()] == [NAME]:
            with contextlib.suppress(OSError):
                (folder / NAME).unlink()
                folder.rmdir()
        os.close(number)


def _take(number: int, folder: Path, say: Callable[[str], None]) -> None:
    try:
        fcntl.lockf(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            say(f"The file system of {folder} has no locks ({error.strerror}): see that no other run uses the folder.")
            return
        owner = printable(os.pread(number, 200, 0).decode("utf-8", "replace").strip())
        raise UserError(
            f"Another run is at work in {folder} ({owner or 'its process is unknown'}); wait for its end, or name "
            "another folder with --out."
        ) from None
    os.ftruncate(number, 0)
    os.pwrite(number, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
