"""A digest of everything that decides a clip's tokens besides the clip, for the cache of features."""

from __future__ import annotations

import functools
import hashlib
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

import alt_kernels
from alt.data.clip_identity import describe_readers
from alt.data.clip_views import ClipViews
from alt.errors import UserError
from alt.measure.machine import describe_machine
from alt.models.baselines import ClipJoint, ClipOne
from alt.models.video_model import VideoModel
from alt.patch.apply import settings_of

__all__ = ["describe_encoder", "describe_views", "fingerprint"]

_TOWER_ALONE = {VideoModel.encode, ClipOne.encode, ClipJoint.encode}
_CODE = ("data", "hosts", "models", "patch")


def describe_encoder(model: VideoModel, place: torch.device) -> str:
    """Returns a digest of what decides a clip's tokens besides the clip, in hexadecimal.

    It is of the tower's weights, structure and patch, of our code and the libraries, and of the processor. Of a model
    whose ``encode`` reads more than the tower, all parts but head and text tower count.

    Raises:
        UserError: the tower has hooks, which may do anything.
    """
    digest = hashlib.sha256(f"{type(model).__qualname__} {model.rows} {model.config.frames}".encode())
    parts: list[nn.Module] = [model.backbone]
    if type(model).encode not in _TOWER_ALONE:
        parts += [part for name, part in model.named_children() if name not in ("backbone", "head", "text")]
    for part in parts:
        digest.update(fingerprint(part).encode())
        for name, module in part.named_modules():
            if module._forward_hooks or module._forward_pre_hooks:
                raise UserError(f"data.feature_cache: expected a tower without hooks, and {name} has one.")
            kind = f"{type(module).__module__}.{type(module).__qualname__}"
            digest.update(repr((name, kind, _plain_attributes(module))).encode())
    settings = settings_of(model.backbone.tower)
    mask = None if settings.protected is None else settings.protected.mask.tolist()
    digest.update(repr((_plain_attributes(settings), mask, model.backbone.statistics)).encode())
    digest.update(describe_code().encode() + describe_processor(place).encode())
    return digest.hexdigest()


def fingerprint(model: nn.Module) -> str:
    """Returns the SHA-256 of the names, dtypes, shapes and bytes of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted({**dict(model.named_buffers()), **model.state_dict()}.items()):  # some are not saved
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _plain_attributes(owner: Any) -> list[tuple[str, Any]]:
    """Returns the attributes that are numbers, texts, or tuples of them: what a class and its tensors do not tell."""

    def is_plain(value: Any) -> bool:
        if isinstance(value, tuple | list):
            return all(map(is_plain, value))
        return value is None or isinstance(value, bool | int | float | str)

    # The trace is of the last forward, and training's mode does not count in evaluation.
    return sorted((k, v) for k, v in vars(owner).items() if k not in ("training", "trace") and is_plain(v))


def describe_views(clips: ClipViews) -> str:
    """Returns what decides the pixels of a video's views besides its file."""
    return repr((clips.frames, clips.size, clips.crops, clips.clips, clips.resize, clips.stride, describe_readers()))


@functools.cache
def describe_code() -> str:
    """Returns a digest of our code that makes tokens of clips, and of its compiled parts."""
    here = Path(__file__).resolve().parents[1]
    folders = [*(here / name for name in _CODE), Path(alt_kernels.__file__).parent]
    files = [file for folder in folders for file in folder.rglob("*") if file.suffix in (".py", ".so", ".pyd", ".json")]
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def describe_processor(place: torch.device) -> str:
    """Returns what decides how results are rounded: processor, threads, libraries, settings of matrix products."""
    machine = describe_machine(place)
    for name in ("load", "commit", "modified"):
        machine.pop(name, None)
    fast = (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark)
    return repr((sorted(machine.items(), key=str), metadata.version("torchvision"), fast))
