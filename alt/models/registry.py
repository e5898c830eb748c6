"""Models by name: ``create_model("alt-b16")``. A name is a family and a backbone; builders load on first use."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .config import AltConfig, BaselineConfig, FrameIntegrationConfig, VideoConfig
from .text import TextEncoder

if TYPE_CHECKING:
    from .video_model import VideoModel

__all__ = [
    "BACKBONES",
    "FAMILIES",
    "LoadedClip",
    "build_clip",
    "create_model",
    "create_text_encoder",
    "list_models",
    "parse_name",
]


class Family(NamedTuple):
    """home: "module:class" of a VideoModel, called ``(config, visual, logit_scale)``; config: the type of its first
    argument."""

    home: str
    config: type[VideoConfig]


FAMILIES = {
    "alt": Family("alt.models.alt:AltModel", AltConfig),
    "clip-mean": Family("alt.models.baselines:ClipMean", BaselineConfig),
    "clip-one": Family("alt.models.baselines:ClipOne", BaselineConfig),
    "clip-joint": Family("alt.models.baselines:ClipJoint", BaselineConfig),
    "mit": Family("alt.models.frame_integration:FrameIntegrationModel", FrameIntegrationConfig),
}

BACKBONES: dict[str, tuple[str, int, int, int]] = {
    "b32": ("ViT-B-32", 8, 2, 4),
    "b16": ("ViT-B-16", 8, 8, 4),
    "l14": ("ViT-L-14", 8, 8, 6),
    "mini": ("mini", 4, 2, 2),
}
"""suffix -> (backbone, and by default: frames T, and for ALT tokens r merged in a block, blocks M of the adapter)."""


def list_models() -> list[str]:
    """The names that :func:`create_model` knows."""
    return [f"{family}-{suffix}" for family in FAMILIES for suffix in BACKBONES]


def parse_name(name: str) -> tuple[str, str]:
    """``"alt-b16"`` to ``("alt", "b16")``.

    Raises:
        ValueError: the name is not in :func:`list_models`.
    """
    family, _, suffix = name.rpartition("-") if isinstance(name, str) else ("", "", "")
    if family not in FAMILIES or suffix not in BACKBONES:
        raise ValueError(f"name: expected one of {', '.join(list_models())}, got {name!r}")
    return family, suffix


def create_model(
    name: str,
    *,
    pretrained: str | os.PathLike[str] | None = None,
    frames: int | None = None,
    r: int | float | Sequence[int] | None = None,
    corpus: Any = None,
    classes: Sequence[str] | tuple[Sequence[str], Tensor] | None = None,
    **options: Any,
) -> VideoModel:
    """A video model by name.

    Args:
        name: one of :func:`list_models`, for example "alt-b16", "alt-l14", "alt-mini", "clip-mean-b16".
        pretrained: weights of CLIP: None (random ones), a tag of open_clip ("openai"), or the path of a
            checkpoint; for "mini" also "entity-world", the weights that ship with the package.
        frames: T of a clip; None: 8, and 4 for "mini".
        r: tokens merged away in every block; None: for ALT 8, and 2 where a frame has few tokens (B/32 and "mini");
            0 for the baselines.
        corpus: for ALT's entity queries: a ``Corpus`` (embedded here, with this CLIP's text encoder, where it is not
            yet), the path of a saved one, or embeddings ``[K, d]``. May be set later, with ``set_corpus``.
        classes: names, embedded with this CLIP's text encoder, or ``(names, embeddings [C, d])``. May be set later,
            with ``set_classes``; without classes the logits are ``[B, 0]``.
        options: fields of :class:`AltConfig`; ``backbone`` takes any open_clip ViT.

    Returns:
        the model, in training mode, on torch's default device (with ``torch.device("meta")`` around the call it
        needs no memory).

    Raises:
        TypeError, ValueError: one sentence that names the argument.
    """
    family, suffix = parse_name(name)
    backbone, default_frames, default_r, layers = BACKBONES[suffix]
    backbone = options.pop("backbone", backbone)
    frames = default_frames if frames is None else frames
    r = (default_r if family == "alt" else 0) if r is None else r
    r = tuple(r) if isinstance(r, Sequence) else r
    values: dict[str, Any] = {**({"layers": layers} if family == "alt" else {}), **options}
    config = FAMILIES[family].config(backbone=backbone, frames=frames, r=r, **values)  # refused before anything is read
    loaded = build_clip(backbone, pretrained, quick_gelu=config.quick_gelu)
    config = dataclasses.replace(config, quick_gelu=loaded.quick_gelu)
    model = load_family(family)(config, loaded.clip.visual, loaded.clip.logit_scale.detach().exp())
    if corpus is not None:
        model.set_corpus(_with_embeddings(corpus, loaded))
    if classes is not None:
        names, embeddings = _classes(classes, loaded, config)
        model.set_classes(names, embeddings)
    return model


class LoadedClip(NamedTuple):
    """clip: open_clip's ``CLIP`` with both towers; quick_gelu: its activation; tokenizer: makes the one of its texts;
    templates: the prompts that its texts were written like, for class names."""

    clip: Any
    quick_gelu: bool
    tokenizer: Callable[[], Any]
    templates: str


def build_clip(
    backbone: str, pretrained: str | os.PathLike[str] | None = None, *, quick_gelu: bool | None = None
) -> LoadedClip:
    """The open_clip ``CLIP`` of a backbone, both towers, on torch's default device.

    Args:
        backbone: an open_clip name or "mini". pretrained: as in :func:`create_model`.
        quick_gelu: None: as the weights were trained, or as the name says where there are none.

    Raises:
        ValueError: no such model, or its weights could not be had.
    """
    if backbone == "mini":
        if quick_gelu:
            raise ValueError("quick_gelu: the mini model was made without it, got True")
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
        except Exception as error:  # open_clip lets errors of the hub, of the disk and of torch.load through
            reason = " ".join(str(error).split())[:200]
            if tag is None:
                raise ValueError(f"backbone: open_clip cannot build {backbone!r} ({reason})") from None
            raise ValueError(f"pretrained: the weights {tag!r} of {backbone} could not be had ({reason})") from None
    return LoadedClip(clip, quick_gelu, lambda: open_clip.get_tokenizer(backbone), "alt16")


def create_text_encoder(
    name: str,
    *,
    pretrained: str | None = None,
    quick_gelu: bool | None = None,
    device: str | torch.device = "cpu",
) -> TextEncoder:
    """The text encoder of an open_clip model, with open_clip's own tokenizer (its vocabulary ships with it), or of the
    embedded benchmark's small CLIP, with the vocabulary of its weights.

    Args:
        name: an open_clip model (``ViT-B-16``), or a model of this package (``alt-b16``, ``mit-l14``, ``alt-mini``).
        pretrained: an open_clip tag, or the path of a checkpoint ("entity-world" for the small CLIP); None: random
            weights.
        quick_gelu: the tower's activation; None: as the tag's weights want it.
        device: where the tower goes.

    Raises:
        ValueError: there is no model of that name, or its weights could not be had.
    """
    backbone = BACKBONES[name.rpartition("-")[2]][0] if name in list_models() else name
    loaded = build_clip(backbone, pretrained, quick_gelu=quick_gelu)
    clip = loaded.clip
    if hasattr(clip, "visual"):
        del clip.visual  # only the text side is kept in memory
    clip.requires_grad_(False).eval()
    return TextEncoder(clip.to(device), loaded.tokenizer())


def _build_mini(pretrained: str | os.PathLike[str] | None) -> LoadedClip:
    from alt.entityworld.mini_clip import load_mini_clip

    mini = load_mini_clip(pretrained)
    return LoadedClip(mini.clip, False, lambda: mini.tokenizer, "none")


def load_family(family: str) -> Any:
    """Returns the class of the models of a family."""
    module, _, attribute = FAMILIES[family].home.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _with_embeddings(corpus: Any, loaded: LoadedClip) -> Any:
    """A corpus whose texts were not embedded yet gets embeddings of this CLIP."""
    if isinstance(corpus, str | os.PathLike):
        from ..corpus import Corpus

        corpus = Corpus.load(corpus)
    if not isinstance(corpus, Tensor) and getattr(corpus, "embeddings", None) is None and hasattr(corpus, "embed"):
        return corpus.embed(_text_encoder(loaded))
    return corpus


def _classes(classes: Any, loaded: LoadedClip, config: Any) -> tuple[Sequence[str], Tensor | None]:
    if isinstance(classes, tuple) and len(classes) == 2 and isinstance(classes[1], Tensor):
        return classes
    if config.head == "linear":
        return classes, None
    return classes, _text_encoder(loaded).embed_classes(classes, loaded.templates)


def _text_encoder(loaded: LoadedClip) -> TextEncoder:
    return TextEncoder(loaded.clip, loaded.tokenizer())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """open_clip logs that weights are random, which the caller asked for."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
