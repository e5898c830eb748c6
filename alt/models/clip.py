"""CLIP as a backbone: by name, as open_clip or transformers builds it, the small CLIP of EntityWorld, or a model."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alt.errors import one_line

from .clip_file import ClipWeights, read_clip_weights
from .foreign_clip import HF, adopt_clip, load_hf_clip
from .loaded_clip import LoadedClip, check_activation

__all__ = [
    "Backbone",
    "LoadedClip",
    "build_clip",
    "check_activation",
    "check_weights",
    "has_own_weights",
    "list_tags",
    "name_backbone",
    "takes_any_words",
]

Backbone = str | nn.Module | tuple[nn.Module, Any]
"""A name; a CLIP of a package that a host knows; or such a CLIP and its tokenizer."""


def build_clip(
    backbone: Backbone, pretrained: str | os.PathLike[str] | None = None, *, quick_gelu: bool | None = None
) -> LoadedClip:
    """Builds the CLIP of a backbone, both towers, on torch's default device.

    Args:
        backbone: open_clip's name of a model, also behind "open_clip:"; "mini"; "hf:PATH", which transformers loads; a
            model, or a model and its tokenizer (:func:`~alt.models.foreign_clip.adopt_clip`).
        pretrained: as in :func:`create_model`.
        quick_gelu: None: as the weights were trained, or without weights as the name says.

    Raises:
        TypeError: the backbone is neither a name nor a model with two towers.
        ValueError: there is no such model, its weights could not be loaded, or they were trained with the other
            activation.
    """
    if not isinstance(backbone, str) or has_own_weights(backbone):
        if pretrained is not None:
            raise ValueError(
                f"pretrained: the backbone {name_backbone(backbone)} has its weights already; expected None, got "
                f"{os.fspath(pretrained)!r}"
            )
        if isinstance(backbone, str):
            return load_hf_clip(backbone.removeprefix(HF), quick_gelu=quick_gelu)
        model, tokenizer = backbone if isinstance(backbone, tuple) else (backbone, None)
        return adopt_clip(model, tokenizer, quick_gelu=quick_gelu)
    backbone = name_backbone(backbone)
    if backbone == "mini":
        if quick_gelu:
            raise ValueError("quick_gelu: the mini model was trained without it, got True")
        return _build_mini(pretrained)
    import open_clip

    config = open_clip.get_model_config(backbone)
    if config is None:
        raise ValueError(f"backbone: open_clip has no model {backbone!r}; open_clip.list_models() lists them")
    tag = os.fspath(pretrained) if pretrained is not None else None
    known = open_clip.get_pretrained_cfg(backbone, tag) if tag is not None else {}
    file = None
    if tag is not None and not known and Path(tag).is_file():
        file, tag = read_weights(tag), None
        check_activation(str(pretrained), file.quick_gelu, quick_gelu)
        quick_gelu = file.quick_gelu if quick_gelu is None else quick_gelu
    named = bool(config.get("quick_gelu", False))
    if file is not None and quick_gelu is None:
        warn_of_activation(str(pretrained), named)
    if quick_gelu is None:
        quick_gelu = bool(known.get("quick_gelu", named))
    with _quiet():
        try:
            clip = open_clip.create_model(
                backbone,
                pretrained=tag,
                force_quick_gelu=quick_gelu,
                pretrained_text=False,
                device=torch.get_default_device(),
            )
        except Exception as error:  # open_clip passes on errors of the hub, of the disk and of torch.load
            reason = one_line(error)
            if tag is None:
                raise ValueError(f"backbone: open_clip cannot build {backbone!r} ({reason})") from None
            raise ValueError(f"pretrained: the weights {tag!r} of {backbone} could not be loaded ({reason})") from None
    if file is not None:
        _load(clip, file.tensors, str(pretrained), backbone)
    name = tag if file is None else Path(str(pretrained)).name  # a folder tells nothing elsewhere
    return LoadedClip(clip, quick_gelu, lambda: open_clip.get_tokenizer(backbone), "alt16", backbone, name)


def name_backbone(backbone: Backbone) -> str:
    """Returns the name by which configurations and records know a backbone.

    Raises:
        TypeError: it is neither a name, nor a model with two towers, nor such a model and its tokenizer.
    """
    if isinstance(backbone, str):
        return backbone.removeprefix("open_clip:")
    return adopt_clip(backbone[0] if isinstance(backbone, tuple) and len(backbone) == 2 else backbone).backbone


def has_own_weights(backbone: str) -> bool:
    """Returns True for a backbone by name that brings its weights, so that ``pretrained`` stays None."""
    return backbone.startswith(HF)


def read_weights(path: str | os.PathLike[str]) -> ClipWeights:
    """Reads a checkpoint as :func:`~alt.models.clip_file.read_clip_weights`; the ValueError names ``pretrained``."""
    try:
        return read_clip_weights(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"pretrained: {error}") from None


def _load(clip: Any, tensors: dict[str, Tensor], path: str, backbone: str) -> None:
    """Loads a file's tensors, after open_clip's own conversions of older and other formats."""
    from alt.hosts.open_clip.weights import arrange_state

    own, state = clip.state_dict(), arrange_state(clip, tensors)
    for name in [*own, *(name for name in state if name not in own)]:
        if name not in state or name not in own:
            what = "no" if name not in state else "an unknown"
            raise ValueError(f"pretrained: {path} is not of {backbone}: it has {what} tensor {name[:100]!r}")
        if own[name].shape != state[name].shape:
            raise ValueError(
                f"pretrained: {path} is not of {backbone}: {name} is {list(state[name].shape)} there and "
                f"{list(own[name].shape)} in the model"
            )
    clip.load_state_dict(state)


def is_built_in(backbone: str) -> bool:
    """Returns whether open_clip builds a model from its own list, without a download or a file."""
    import open_clip

    config = open_clip.get_model_config(backbone) if backbone in open_clip.list_models() else None
    return config is not None and "hf_model_name" not in config["text_cfg"]


def warn_of_activation(path: str | os.PathLike[str], taken: bool) -> None:
    """Warns that a file of weights does not tell its activation, and which one was taken."""
    warnings.warn(
        f"pretrained: {os.fspath(path)!r} does not tell whether it was trained with QuickGELU (OpenAI's weights were) "
        f"or GELU; {'QuickGELU' if taken else 'GELU'} is taken. quick_gelu={taken} says that it is right",
        UserWarning,
        stacklevel=4,
    )


def check_weights(backbone: str, pretrained: str | os.PathLike[str] | None) -> None:
    """Checks that the weights exist before anything slow. It needs no network and builds no model.

    Raises:
        ValueError: open_clip has no such model, or ``pretrained`` is neither a file nor one of its tags, or is given
            with a backbone that brings its weights.
    """
    if pretrained is None:
        return
    tag, backbone = os.fspath(pretrained), name_backbone(backbone)
    if has_own_weights(backbone):
        raise ValueError(f"pretrained: the backbone {backbone} has its weights already; expected none, got {tag!r}")
    if Path(tag).exists():  # of a folder, X-CLIP's loader says what it lacks
        return
    if backbone == "mini":
        if tag not in list_tags(backbone):
            raise ValueError(f"pretrained: expected 'entity-world' or a file of a small CLIP, found no {tag}")
        return
    import open_clip

    tags = list_tags(backbone)
    if open_clip.get_model_config(backbone) is None:
        raise ValueError(f"backbone: open_clip has no model {backbone!r}; open_clip.list_models() lists them")
    if tag not in tags:
        raise ValueError(
            f"pretrained: there is no file {tag} and no such tag of {backbone}; "
            + (f"its tags are {', '.join(tags)}" if tags else "it has none")
        )


def list_tags(backbone: str) -> list[str]:
    """Returns the published weights of a backbone by their tags: open_clip's own list, without a download."""
    if backbone == "mini":
        from alt.entityworld.mini_clip import ANY_WORDS

        return ["entity-world", ANY_WORDS]
    import open_clip

    return list(open_clip.list_pretrained_tags_by_model(backbone))


def takes_any_words(backbone: str, pretrained: str | None) -> bool:
    """Returns whether weights are the small CLIP's with the tokenizer that refuses no word."""
    from alt.entityworld.mini_clip import ANY_WORDS

    return backbone == "mini" and pretrained == ANY_WORDS


def _build_mini(pretrained: str | os.PathLike[str] | None) -> LoadedClip:
    from alt.entityworld.mini_clip import load_mini_clip

    mini = load_mini_clip(pretrained)
    name = None if pretrained is None else Path(pretrained).name
    return LoadedClip(mini.clip, False, lambda: mini.tokenizer, "none", "mini", name)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences open_clip's warning about random weights, which the caller asked for."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
