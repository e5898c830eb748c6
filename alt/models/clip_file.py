"""CLIP's weights in files of other packages: tensors and their names, and nothing else of the file.

safetensors; what ``torch.save`` wrote; and OpenAI's TorchScript archives, whose code is not run: their pickle is read
with a reader that knows tensors only.
"""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from alt.files import check_decoded, decoded_limit, describe_error, read_tensors, read_torch, require_file, tensor_bytes

__all__ = ["ClipWeights", "bare_name", "read_clip_weights"]

_WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module")  # of torch.compile, DDP and FSDP
_STORAGES = {
    f"{kind}Storage": getattr(torch, name)
    for kind, name in {
        **{"Float": "float32", "Double": "float64", "Half": "float16", "BFloat16": "bfloat16"},
        **{"Long": "int64", "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool"},
    }.items()
}


class ClipWeights(NamedTuple):
    """tensors: by name, without the prefixes of wrappers. metadata: of a safetensors file. quick_gelu: the activation
    that the weights were trained with, None if the file does not tell."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    quick_gelu: bool | None


def read_clip_weights(path: str | os.PathLike[str]) -> ClipWeights:
    """Reads the tensors of a checkpoint.

    Args:
        path: a .safetensors file, a state dict or a dict with ``state_dict`` or ``model`` that ``torch.save`` wrote, or
            one of OpenAI's archives (TorchScript), which were trained with QuickGELU.

    Raises:
        OSError: it cannot be read. ValueError: it is none of these, or two of its names are one without wrappers.
    """
    file = require_file(path)
    if file.suffix == ".safetensors":
        tensors, metadata = read_tensors(file)
        return ClipWeights(_unwrap(tensors, file), metadata, None)
    archive = _find_script(file)
    if archive is not None:
        return ClipWeights(_unwrap(_read_script(file, archive), file), {}, True)
    content = read_torch(file)
    if isinstance(content, Mapping):  # "model" is the key of X-CLIP's authors
        content = next((content[key] for key in ("state_dict", "model") if key in content), content)
    found = content.items() if isinstance(content, Mapping) else ()
    tensors = {str(name): value for name, value in found if isinstance(value, Tensor)}
    _check_plain(tensors, file)
    return ClipWeights(_unwrap(tensors, file), {}, None)


def bare_name(name: str) -> str:
    """Returns the name of a parameter without the parts that torch.compile, DDP and FSDP put into it."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _unwrap(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        bare = bare_name(name)
        if bare in found:
            raise ValueError(f"{path}: two of its tensors are named {bare[:80]!r}, apart from prefixes of wrappers")
        found[bare] = tensor
    return found


def _check_plain(tensors: dict[str, Tensor], path: Path) -> None:
    total = 0
    for name, tensor in tensors.items():
        try:
            total += tensor_bytes(tensor)
        except ValueError as error:
            raise ValueError(f"{path}: {name[:80]!r}: {error}") from None
    check_decoded(total, str(path), max(decoded_limit(), path.stat().st_size))


# --- TorchScript ---


def _find_script(path: Path) -> str | None:
    """Returns the folder inside a TorchScript archive, or None for another file."""
    try:
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                return None
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception as error:  # damaged bytes
        raise ValueError(f"{path}: not a file of tensors ({describe_error(error)})") from None
    folder = names[0].partition("/")[0] if names else ""
    return folder if f"{folder}/constants.pkl" in names and f"{folder}/data.pkl" in names else None


class _Module:
    """Stands for an object of the archive: keeps what belongs to it and runs nothing."""

    members: Mapping[str, Any] = MappingProxyType({})  # pickle makes objects without __init__

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.members = {name: value for name, value in state.items() if isinstance(name, str)}


class _Storage(NamedTuple):
    data: Tensor


class _Reader(pickle.Unpickler):
    """Reads tensors, lists, numbers and :class:`_Module`; every other name of the pickle is refused."""

    def __init__(self, data: bytes, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(io.BytesIO(data))
        self._archive, self._folder, self._read = archive, folder, {}  # type: ignore[var-annotated]

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "__torch__":
            return _Module
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch.jit._pickle" and name.startswith("build_") and name.endswith("list"):
            return list
        raise pickle.UnpicklingError(f"it asks for {module[:40]}.{name[:40]}")

    def persistent_load(self, key: Any) -> Any:
        kind, dtype, number, _, _ = key
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(number, str):
            raise pickle.UnpicklingError("it has a storage of an unknown kind")
        if number not in self._read:
            member = self._archive.getinfo(f"{self._folder}/data/{number}")
            if member.compress_type != zipfile.ZIP_STORED:
                raise pickle.UnpicklingError("its members are compressed")
            data = bytearray(self._archive.read(member))
            self._read[number] = _Storage(torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype))
        return self._read[number]


def _rebuild(storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: Any) -> Tensor:
    return storage.data.as_strided(size, stride, offset)


def _read_script(path: Path, folder: str) -> dict[str, Tensor]:
    """Returns the tensors of the modules in a TorchScript archive by their names, as ``state_dict`` would."""
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.getinfo(f"{folder}/data.pkl")
            check_decoded(member.file_size, str(path), max(decoded_limit(), path.stat().st_size) // 16)
            root = _Reader(archive.read(member), archive, folder).load()
    except OSError:
        raise
    except Exception as error:  # of pickle, zip and torch on damaged bytes
        raise ValueError(f"{path}: not an archive of tensors ({describe_error(error)})") from None
    found: dict[str, Tensor] = {}
    waiting, seen = [("", root)], set()
    while waiting:
        prefix, module = waiting.pop()
        if not isinstance(module, _Module) or id(module) in seen:
            continue
        seen.add(id(module))
        for name, value in module.members.items():
            if isinstance(value, Tensor):
                found[f"{prefix}{name}"] = value
            else:
                waiting.append((f"{prefix}{name}.", value))
    _check_plain(found, path)
    return found
