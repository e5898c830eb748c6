"""Loads CLIP's own weights, in other packages' formats, into the tower of a video model."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .clip import build_clip
from .weights import HEADER_KEY, read_tensors

__all__ = ["BackboneReport", "load_backbone"]


class BackboneReport(NamedTuple):
    """Names of loaded and missing parameters (as in ``model.state_dict()``), and of unused ones (as in the file).

    missing: parameters that the file does not have. For CLIP's weights these are exactly the modules added to the
    tower. unused: other tensors of the file, such as the text tower.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]


def load_backbone(model: Any, pretrained: str | os.PathLike[str]) -> BackboneReport:
    """Loads CLIP's weights into the tower of a video model. Modules added to the tower keep their weights.

    Args:
        model: a video model.
        pretrained: a tag of open_clip ("openai"), "entity-world" for the small CLIP, or a file: OpenAI's archive,
            open_clip's checkpoint (.pt, .safetensors), a saved model of this package.

    Raises:
        ValueError: the weights cannot be loaded, belong to another tower, or were trained with the other activation.
            The model is unchanged.
    """
    file, quick_gelu = _clip_weights(model, pretrained)
    host, tower = model.backbone.host, model.backbone.tower
    own_only = [name for name in tower.state_dict() if host.component(name) == "patch_embedding"]
    prefixes = ("backbone.visual.", "visual.", "")
    prefix = next((p for p in prefixes if all(f"{p}{name}" in file for name in own_only)), None)
    if prefix is None:
        raise ValueError(f"pretrained: {pretrained} holds no weights of a CLIP image tower")
    own, state, unused = model.state_dict(), {}, []
    for name, tensor in file.items():
        target = f"backbone.visual.{name.removeprefix(prefix)}" if name.startswith(prefix) else ""
        if name == "logit_scale":
            target, tensor = "logit_scale", tensor if prefix.startswith("backbone") else tensor.exp()
        if target in own:
            state[target] = tensor
        else:
            unused.append(name)
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise ValueError(
                f"pretrained: {pretrained} is of another tower: {name.removeprefix('backbone.visual.')} is "
                f"{list(tensor.shape)} there and {list(own[name].shape)} in the model ({model.config.backbone})"
            )
    if quick_gelu is not None and quick_gelu != bool(model.config.quick_gelu):
        raise ValueError(
            f"pretrained: {pretrained} was trained with{'' if quick_gelu else 'out'} QuickGELU; create the model with "
            f"quick_gelu={quick_gelu}"
        )
    model.load_state_dict(state, strict=False)
    missing = tuple(name for name, _ in model.named_parameters() if name not in state)
    return BackboneReport(tuple(state), missing, tuple(unused))


def _clip_weights(model: Any, pretrained: str | os.PathLike[str]) -> tuple[dict[str, Tensor], bool | None]:
    """Returns the state dict of a file or tag, and its activation if known."""
    path = Path(pretrained)
    if not path.is_file():
        loaded = build_clip(model.config.backbone, pretrained)
        return loaded.clip.state_dict(), loaded.quick_gelu
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
        except SafetensorError as error:
            raise ValueError(f"pretrained: {path} is not a safetensors file: {error}") from None
        activation = (
            bool(json.loads(metadata[HEADER_KEY])["config"].get("quick_gelu")) if HEADER_KEY in metadata else None
        )
        return read_tensors(path), activation
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # OpenAI's archives are TorchScript, whose deprecation torch reports
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # pickle, zip and torch raise a dozen kinds
            try:
                return dict(torch.jit.load(path, map_location="cpu").state_dict()), True
            except RuntimeError:
                raise ValueError(
                    f"pretrained: {path} is not a checkpoint: {str(error).splitlines()[0][:200]}"
                ) from None
    content = content.get("state_dict", content) if isinstance(content, dict) else {}
    tensors = {str(name).removeprefix("module."): value for name, value in content.items()}
    return {name: value for name, value in tensors.items() if isinstance(value, Tensor)}, None
