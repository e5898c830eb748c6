"""Loads CLIP's own weights, in other packages' formats, into the tower of a video model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from .clip import build_clip, check_activation, is_built_in, read_weights, warn_of_activation
from .header import HEADER_KEY, parse_header

__all__ = ["BackboneReport", "load_backbone"]


class BackboneReport(NamedTuple):
    """Names of loaded and missing parameters (as in ``model.state_dict()``), and of unused ones (as in the file).

    missing: parameters that the file does not have. For CLIP's weights these are exactly the modules added to the
    tower. unused: other tensors of the file, such as the text tower.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]


def load_backbone(model: Any, pretrained: str | os.PathLike[str], *, quick_gelu: bool | None = None) -> BackboneReport:
    """Loads CLIP's weights into the tower of a video model. Modules added to the tower keep their weights.

    Args:
        model: a video model.
        pretrained: a tag of open_clip ("openai"), "entity-world" for the small CLIP, or a file: OpenAI's archive,
            open_clip's checkpoint (.pt, .safetensors), a saved model of this package. Prefixes that torch.compile,
            DDP and FSDP put before names are passed over. Only tensors are read: no code of a file runs.
        quick_gelu: the activation that the weights of a file were trained with, where the file does not tell (a state
            dict). None: a warning says that the model's is taken.

    Raises:
        ValueError: the weights cannot be loaded, belong to another tower, or were trained with the other activation.
            The model is unchanged.
    """
    file, trained = _clip_weights(model, pretrained, quick_gelu)
    host, tower = model.backbone.host, model.backbone.tower
    own_only = [name for name in tower.state_dict() if host.component(name) == "patch_embedding"]
    prefixes = ("backbone.visual.", "visual.", "")
    prefix = next((p for p in prefixes if all(f"{p}{name}" in file for name in own_only)), None)
    if prefix is None:
        raise ValueError(f"pretrained: {pretrained} holds no weights of a CLIP image tower")
    own, state, unused = model.state_dict(), {}, []
    for name, tensor in file.items():
        target = f"backbone.visual.{name.removeprefix(prefix)}" if name.startswith(prefix) else ""
        if target not in own:  # of the text tower, if the model holds one
            target = name if name.startswith("text.clip.") else f"text.clip.{name}"
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
    check_activation(pretrained, trained, bool(model.config.quick_gelu))
    model.load_state_dict(state, strict=False)
    model.refresh_texts()
    missing = tuple(name for name, _ in model.named_parameters() if name not in state)
    return BackboneReport(tuple(state), missing, tuple(unused))


def _clip_weights(
    model: Any, pretrained: str | os.PathLike[str], quick_gelu: bool | None
) -> tuple[dict[str, Tensor], bool | None]:
    """Returns the state dict of a file or tag, and its activation if known."""
    path, own = Path(pretrained), bool(model.config.quick_gelu)
    if not path.is_file():
        name = model.config.backbone
        if name != "mini" and not is_built_in(name):  # a saved model may name a folder, or one on the Hub
            raise ValueError(f"backbone: open_clip has no model {name!r} of its own, and no tag of its weights")
        loaded = build_clip(name, pretrained)
        return loaded.clip.state_dict(), loaded.quick_gelu
    found = read_weights(path)
    if HEADER_KEY in found.metadata:
        header = parse_header(found.metadata[HEADER_KEY], path)
        return found.tensors, bool(header["config"].get("quick_gelu"))
    known = found.quick_gelu if quick_gelu is None else quick_gelu
    if known is None:
        warn_of_activation(path, own)
    return found.tensors, known
