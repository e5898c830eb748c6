"""Checkpoints: written whole or not at all (:func:`alt.files.replacing`), and read only if no byte has changed."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from alt.errors import UserError, one_line
from alt.files import read_torch, replacing

from .digest import append_digest, check_digest

LAST = Path("checkpoints") / "last.ckpt"


class WriteError(UserError):
    """A file of the run could not be written. The previous file is unchanged."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's file format with a digest; the previous checkpoint is kept until the new one is on the disk.

    Raises:
        WriteError: disk full, no permission and the like, in one sentence. UserError: the file to load is damaged.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with write_errors(), replacing(path, "the checkpoint") as partial, _as_os_error(), partial.open("wb+") as file:
            torch.save(checkpoint, file)
            append_digest(file)

    def load_checkpoint(self, path: Any, *arguments: Any, **options: Any) -> Any:
        _require_whole(Path(path))
        return super().load_checkpoint(path, *arguments, **options)


@contextlib.contextmanager
def write_errors() -> Iterator[None]:
    """Turns errors of :func:`alt.files.replacing` into sentences for the user."""
    try:
        yield
    except OSError as error:
        raise WriteError(f"{(error.strerror or one_line(error))[:1].upper()}{(error.strerror or '')[1:]}.") from error


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
    """Restores the OSError that torch's zip writer turns into a RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        cause = error.__cause__ or error.__context__
        if isinstance(cause, OSError):
            raise cause from None
        if "write" in str(error):
            raise OSError(errno.EIO, one_line(error)) from error
        raise


def sweep(path: Path) -> None:
    """Removes files left by a process that was killed while writing ``path``."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        left.unlink(missing_ok=True)


def read_checkpoint(path: Path, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Reads a checkpoint, with tensors on the CPU.

    Args:
        path: the file. say: receives a line if the file is older than digests, so that not all of it is checked.

    Raises:
        UserError: the file is missing, damaged, or not a checkpoint of this package.
    """
    if not _require_whole(path):
        say(f"{path} was written without a digest: checksums of its parts are right, its headers are unchecked.")
    try:
        checkpoint = read_torch(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{one_line(error)}.") from None
    ours = checkpoint.get("alt") if isinstance(checkpoint, dict) else None
    if not isinstance(ours, dict) or not isinstance(ours.get("config"), dict):
        raise UserError(f"{path} is not a checkpoint of a training run of this program.")
    return checkpoint


def _require_whole(path: Path) -> bool:
    """Returns whether the file has a digest. Raises UserError if it is missing or damaged."""
    try:
        return check_digest(path)
    except FileNotFoundError:
        raise UserError(f"There is no checkpoint at {path} to resume from.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or one_line(error)}.") from None
    except ValueError as error:
        raise UserError(
            f"{path} is damaged or not a checkpoint: {error}; put a copy of it in its place, or start anew in another "
            "folder with --out."
        ) from None
