"""Checkpoints that are whole or not there, see :func:`alt.files.replacing`."""

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
    """A file of the run could not be written; what was there before is untouched."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's file format; the checkpoint of before stays until the new one is on the disk.

    Raises:
        WriteError: disk full, no permission and the like, in one sentence.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with write_errors(), replacing(path, "the checkpoint") as partial, _as_os_error(), partial.open("wb") as file:
            torch.save(checkpoint, file)


@contextlib.contextmanager
def write_errors() -> Iterator[None]:
    """What :func:`alt.files.replacing` says about a failed write, for the user."""
    try:
        yield
    except OSError as error:
        raise WriteError(f"{(error.strerror or one_line(error))[:1].upper()}{(error.strerror or '')[1:]}.") from error


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
    """torch's zip writer turns an error of the file under it into a RuntimeError."""
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
    """Remove what a process that was killed while writing ``path`` left beside it."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        left.unlink(missing_ok=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, tensors on the CPU.

    Raises:
        UserError: it is not there, or not a checkpoint of ours, or damaged.
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
