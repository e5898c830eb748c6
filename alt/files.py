"""Files: atomic writes, and reads that trust nothing in the file.

Every reader of a file that somebody else may have written goes through this module. Nothing of such a file is
executed, it names no other file to be read, and what it decodes to is limited (:func:`decoded_limit`).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pickle
import stat
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

__all__ = [
    "LIMIT_VARIABLE",
    "check_decoded",
    "decoded_limit",
    "describe_error",
    "parse_json",
    "read_json",
    "read_metadata",
    "read_tensors",
    "read_text",
    "read_torch",
    "refuse_special",
    "replacing",
    "require_file",
    "tensor_bytes",
]

LIMIT_VARIABLE = "ALT_MAX_DECODED_MIB"
"""Environment variable: MiB that one input file may take in memory. Without it, 1024."""

TEXT_SHARE = 16  # a text file may take 1/16 of the limit, because its parsed form takes several times its bytes


# --- writing ---


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], what: str, *, sync: bool = True) -> Iterator[Path]:
    """Yields the path of a temporary file in the same folder, which replaces ``path`` at the end.

    The data is synced to disk before ``os.replace`` swaps the files in one step. A reader, a full disk, Ctrl-C or a
    killed process find either the old file or the new one, whole. The temporary file is removed on any error.

    Args:
        path: the file to write. A missing folder is created.
        what: the thing being written, for the error message: "the model".
        sync: False saves the time of syncing, for files whose content is checked when it is read: after a power cut
            such a file may be there without its data.

    Raises:
        OSError: the file could not be written (disk full, no permission), or ``path`` is a device, a pipe or a link
            to one. The message is one sentence; errno is kept.
    """
    target = Path(path)
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        refuse_special(target)
        number, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
        os.close(number)
        temporary = Path(name)
        yield temporary
        if sync:
            with temporary.open("rb+") as written:
                os.fsync(written.fileno())
        os.chmod(temporary, _default_mode())  # mkstemp gives 0600
        os.replace(temporary, target)
        temporary = None
        if sync:
            _sync_folder(target.parent)
    except OSError as error:
        reason = error.strerror or str(error)
        kept = ", the previous file is unchanged" if target.is_file() else ""
        raise OSError(error.errno, f"could not save {what} to {target}: {reason}{kept}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def refuse_special(path: Path) -> Path:
    """Returns the path of an output, which nothing, a file or a folder may have.

    Raises:
        OSError: it is a device, a pipe or a socket, or a link to one.
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise OSError(errno.EINVAL, "it is a device or a pipe, and a file is expected", str(path))
    return path


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


# --- reading ---


def decoded_limit() -> int:
    """Returns the bytes that one input may take in memory: ``ALT_MAX_DECODED_MIB`` MiB, or 1 GiB without it.

    Raises:
        ValueError: the variable is not a whole number of at least 1.
    """
    text = os.environ.get(LIMIT_VARIABLE, "1024")
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 2**40):
        raise ValueError(f"{LIMIT_VARIABLE}: expected a whole number of MiB, 1 or more, got {text[:40]!r}")
    return int(text) << 20


def check_decoded(size: int, where: str, limit: int | None = None) -> None:
    """Checks the bytes that an input would take in memory, before they are taken.

    Args:
        size: in bytes. where: the beginning of the message, a path. limit: in bytes; None: :func:`decoded_limit`.

    Raises:
        ValueError: the size is above the limit. The message says both, and how to change the limit.
    """
    limit = decoded_limit() if limit is None else limit
    if size > limit:
        raise ValueError(
            f"{where}: it takes {_mib(size)} MiB in memory, more than the limit of {_mib(limit)} MiB; if you trust "
            f"it, set {LIMIT_VARIABLE}"
        )


def _mib(size: int) -> str:
    return str(-(-size >> 20)) if size < 2**60 else "more than 2^40"


def require_file(path: str | os.PathLike[str]) -> Path:
    """Returns the path of a file that can be opened without waiting: no folder, device or pipe.

    Raises:
        FileNotFoundError: there is none. ValueError: it is something else.
    """
    found = Path(path)
    try:
        mode = found.stat().st_mode
    except OSError as error:
        raise FileNotFoundError(error.errno, error.strerror or "no such file", str(path)) from None
    except ValueError:  # a null character
        raise FileNotFoundError(errno.ENOENT, "no such file", str(path)) from None
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a device or a pipe"
        raise ValueError(f"{path}: a file is expected, this is {kind}")
    return found


def read_text(path: str | os.PathLike[str], limit: int | None = None) -> str:
    """Returns the text of a UTF-8 file, without the byte order mark that some editors put first.

    Args:
        limit: in bytes; None: 1/16 of :func:`decoded_limit`.

    Raises:
        OSError: it cannot be read. ValueError: it is too long, not a regular file, or not UTF-8.
    """
    found = require_file(path)
    limit = decoded_limit() // TEXT_SHARE if limit is None else limit
    with found.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{path}: a text of at most {limit >> 10} KiB is expected")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text in UTF-8 (byte {error.start})") from None


def read_json(path: str | os.PathLike[str]) -> Any:
    """Returns the content of a JSON file.

    Raises:
        OSError: it cannot be read. ValueError: it is not JSON, or too long, in one sentence with the path.
    """
    return parse_json(read_text(path), str(path))


def parse_json(text: str, where: str) -> Any:
    """Returns the value of a JSON text; ``where`` begins the message of the ValueError."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # a ValueError also for a number of 5000 digits
        raise ValueError(f"{where}: not valid JSON ({describe_error(error)})") from None


def read_torch(path: str | os.PathLike[str], limit: int | None = None) -> Any:
    """Returns what ``torch.save`` wrote: tensors and plain values, on the CPU. Code in the file is refused.

    Tensors of a zip file are mapped, not read: copy those that are kept. The caller checks :func:`tensor_bytes`.

    Args:
        limit: bytes of the file; None: any, because tensors are no larger than their file.

    Raises:
        OSError: it cannot be read. ValueError: it is no such file, or holds more than tensors and plain values.
    """
    import torch

    found = require_file(path)
    size = found.stat().st_size
    if limit is not None:
        check_decoded(size, str(path), limit)
    try:
        with found.open("rb") as file:
            mapped = zipfile.is_zipfile(file)
        if mapped:
            with zipfile.ZipFile(found) as archive:
                members = archive.infolist()
            # torch would decompress such members into memory; it writes none.
            if any(m.compress_type != zipfile.ZIP_STORED for m in members) or sum(m.file_size for m in members) > size:
                raise ValueError("its members are compressed")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch remarks on kinds of tensors that we refuse
            return torch.load(found, map_location="cpu", weights_only=True, mmap=mapped)
    except OSError:
        raise
    except pickle.UnpicklingError:  # its message is a page on how to run the file's code
        raise ValueError(f"{path}: not a file of tensors (it is damaged, or holds more than tensors)") from None
    except Exception as error:  # zip and torch raise a dozen kinds on damaged bytes
        raise ValueError(f"{path}: not a file of tensors ({describe_error(error)})") from None


def tensor_bytes(tensor: Tensor) -> int:
    """Returns the bytes that a tensor's values take when each has its own place.

    Raises:
        ValueError: it has no plain values in memory: it is sparse, quantised, or on the device "meta".
    """
    import torch

    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized or tensor.is_nested:
        what = "quantised" if tensor.is_quantized else f"{tensor.layout} on {tensor.device}".removeprefix("torch.")
        raise ValueError(f"a plain tensor is expected, got a {what} one")
    return tensor.numel() * tensor.element_size()


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Returns the metadata of a safetensors file. Raises as :func:`read_tensors`."""
    return _open_safetensors(path, lambda file: file.metadata() or {})


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the tensors of a safetensors file, each in memory of its own, and the file's metadata.

    Raises:
        OSError: it cannot be read. ValueError: it is not a safetensors file.
    """

    def take(file: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
        # Copies: tensors of the mapped file are unaligned, and vector code then rounds its sums differently.
        return {name: file.get_tensor(name).clone() for name in list(file.keys())}, file.metadata() or {}

    return _open_safetensors(path, take)


def _open_safetensors(path: str | os.PathLike[str], take: Callable[[Any], T]) -> T:
    from safetensors import safe_open

    found = require_file(path)
    try:
        with safe_open(found, framework="pt") as file:
            return take(file)
    except OSError:
        raise
    except Exception as error:  # SafetensorError, and torch's for types it does not know
        raise ValueError(f"{path}: not a safetensors file ({describe_error(error)})") from None


def describe_error(error: BaseException) -> str:
    """Returns the first line of an error, short enough to quote; of an OSError without number and path."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).strip().splitlines()
    return text[0][:120].rstrip(".") if text else type(error).__name__
