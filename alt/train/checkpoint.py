"""Checkpoints that are written whole or not at all, see :func:`alt.files.replacing`."""

from __future__ import annotations

import contextlib
import errno
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from alt.errors import UserError, one_line
from alt.files import replacing

LAST = Path("checkpoints") / "last.ckpt"


class WriteError(UserError):
    """A file of the run could not be written. The previous file is unchanged."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's file format, but the previous checkpoint is kept until the new one is on the disk.

    Raises:
        WriteError: disk full, no permission and the like, in one sentence.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with write_errors(), replacing(path, "the checkpoint") as partial, _as_os_error(), partial.open("wb") as file:
            torch.save(checkpoint, file)


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


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint, with tensors on the CPU.

    Raises:
        UserError: the file is missing, damaged, or not a checkpoint of this package.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise UserError(f"There is no checkpoint at {path} to resume from.") from None
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} is not a readable checkpoint: {one_line(error)}.") from None
    if not isinstance(checkpoint, dict) or "alt" not in checkpoint:
        raise UserError(f"{path} is not a checkpoint of a training run of this program.")
    return checkpoint
