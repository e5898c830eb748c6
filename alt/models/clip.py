"""CLIP by name, as open_clip builds it, or the small CLIP of EntityWorld."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from alt.errors import one_line

__all__ = ["LoadedClip", "build_clip", "check_weights"]


class LoadedClip(NamedTuple):
    """clip: open_clip's ``CLIP`` with both towers. quick_gelu: its activation. tokenizer: returns its tokenizer.
    templates: prompts for class names, in the style of its training texts."""

    clip: Any
    quick_gelu: bool
    tokenizer: Callable[[], Any]
    templates: str


def build_clip(
    backbone: str, pretrained: str | os.PathLike[str] | None = None, *, quick_gelu: bool | None = None
) -> LoadedClip:
    """Builds the open_clip ``CLIP`` of a backbone, both towers, on torch's default device.

    Args:
        backbone: an open_clip name or "mini". pretrained: as in :func:`create_model`.
        quick_gelu: None: as the weights were trained, or without weights as the name says.

    Raises:
        ValueError: there is no such model, or its weights could not be loaded.
    """
    if backbone == "mini":
        if quick_gelu:
            raise ValueError("quick_gelu: the mini model was trained without it, got True")
        return _build_mini(pretrained)
    import open_clip

    config = open_clip.get_model_config(backbone)
    if config is None:
        raise ValueError(f"backbone: open_clip has no model {backbone!r}; open_clip.list_models() lists them")
    tag = os.fspath(pretrained) if pretrained is not None else None
    if quick_gelu is None:
        known = open_clip.get_pretrained_cfg(backbone, tag) if tag is not None else {}
        quick_gelu = bool(known.get("quick_gelu", config.get("quick_gelu", False)))
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
    return LoadedClip(clip, quick_gelu, lambda: open_clip.get_tokenizer(backbone), "alt16")


def check_weights(backbone: str, pretrained: str | os.PathLike[str] | None) -> None:
    """Checks that the weights exist before anything slow. It needs no network and builds no model.

    Raises:
        ValueError: open_clip has no such model, or ``pretrained`` is neither a file nor one of its tags.
    """
    if pretrained is None or Path(pretrained).is_file():
        return
    tag = os.fspath(pretrained)
    if backbone == "mini":
        if tag != "entity-world":
            raise ValueError(f"pretrained: expected 'entity-world' or a file of a small CLIP, found no {tag}")
        return
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(backbone)
    if open_clip.get_model_config(backbone) is None:
        raise ValueError(f"backbone: open_clip has no model {backbone!r}; open_clip.list_models() lists them")
    if tag not in tags:
        raise ValueError(
            f"pretrained: there is no file {tag} and no such tag of {backbone}; "
            + (f"its tags are {', '.join(tags)}" if tags else "it has none")
        )


def _build_mini(pretrained: str | os.PathLike[str] | None) -> LoadedClip:
    from alt.entityworld.mini_clip import load_mini_clip

    mini = load_mini_clip(pretrained)
    return LoadedClip(mini.clip, False, lambda: mini.tokenizer, "none")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences open_clip's warning about random weights, which the caller asked for."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
