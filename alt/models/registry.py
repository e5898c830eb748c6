"""Video models and text encoders by name: ``create_model("alt-b16")``."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from alt.errors import refuse_unordered
from alt.hosts import find_host

from .clip import Backbone, LoadedClip, build_clip, has_own_weights, name_backbone
from .families import BACKBONES, FAMILIES, list_models, load_family, parse_name
from .text import TextEncoder
from .text_tower import TextTower

if TYPE_CHECKING:
    from .video_model import VideoModel
    from .xclip_weights import XClipFile

__all__ = ["build_with_clip", "create_model", "create_text_encoder"]


def create_model(
    name: str,
    *,
    pretrained: str | os.PathLike[str] | None = None,
    frames: int | None = None,
    r: int | float | Sequence[int] | None = None,
    corpus: Any = None,
    classes: Sequence[str] | tuple[Sequence[str], Tensor] | None = None,
    backbone: Backbone | None = None,
    **options: Any,
) -> VideoModel:
    """Creates a video model by name.

    Args:
        name: one of :func:`list_models`, for example "alt-b16", "xclip-l14-336", "alt-mini", "clip-mean-b16"; a
            family alone is that of B/16: "xclip".
        pretrained: weights of CLIP: None for random ones, a tag of open_clip ("openai"), or the path of a
            checkpoint; for "mini" also "entity-world", the weights that ship with the package, and
            "entity-world-any-words", which refuses no word (docs/entity_world.md). For "xclip-*" also a whole published
            X-CLIP: the authors' file (.pth), or a file or folder that transformers wrote.
        frames: T of a clip; None: that of a published X-CLIP, else 8, 16 for L/14 at 336 pixels, and 4 for "mini".
        r: tokens merged away per block. None: 8 for ALT, or 2 if a frame has few tokens (B/32 and "mini"); 0 for the
            baselines.
        corpus: for ALT's entity queries: a ``Corpus``, the path of a saved one, or embeddings ``[K, d]``. A corpus
            without embeddings is embedded with this CLIP's text encoder. ``set_corpus`` sets one later.
        classes: names, embedded with this CLIP's text encoder, or ``(names, embeddings [C, d])``. ``name_classes``
            and ``set_classes`` set them later; without classes the logits are ``[B, 0]``.
        backbone: another CLIP than the name's: open_clip's name of a ViT ("open_clip:ViT-H-14" or "ViT-H-14");
            "hf:PATH", a folder or name from which transformers loads a ``CLIPModel`` or ``SiglipModel`` with its
            tokenizer; such a model itself, open_clip's or OpenAI's; or (model, tokenizer). A model is not copied: its
            image tower is patched, and with ``text="held"`` or "trained" taken out of it. ``frames``, ``r`` and
            ``layers`` are still those of the name.
        options: fields of the family's configuration (:class:`AltConfig`, :class:`XClipConfig`, ...).

    Returns:
        The model, in training mode, on torch's default device. Under ``torch.device("meta")`` it needs no memory.

    Raises:
        TypeError, ValueError: one sentence that names the argument.
    """
    refuse_unordered(classes, "classes")
    if isinstance(classes, str):
        raise TypeError(f"classes: expected a sequence of names, got one str {classes!r}")
    model: Any
    model, loaded = build_with_clip(name, pretrained=pretrained, frames=frames, r=r, backbone=backbone, **options)
    if corpus is not None:
        model.set_corpus(_with_embeddings(corpus, loaded))
    if classes is not None:
        if isinstance(classes, tuple) and len(classes) == 2 and isinstance(classes[1], Tensor):
            model.set_classes(*classes)
        else:  # a small CLIP knows no words of templates
            model.name_classes(classes, loaded.text_encoder(), _templates(model, loaded))
    return model


def build_with_clip(
    name: str,
    *,
    pretrained: str | os.PathLike[str] | None = None,
    frames: int | None = None,
    r: int | float | Sequence[int] | None = None,
    backbone: Backbone | None = None,
    **options: Any,
) -> tuple[VideoModel, LoadedClip]:
    """Builds a video model without corpus and classes, and returns it with the CLIP whose image tower it took.

    Arguments and errors are those of :func:`create_model`.
    """
    family, suffix = parse_name(name)
    own_backbone, default_frames, default_r, layers = BACKBONES[suffix]
    backbone = own_backbone if backbone is None else backbone
    r = (default_r if family == "alt" else 0) if r is None else r
    r = tuple(r) if isinstance(r, Sequence) and not isinstance(r, str) else r
    values: dict[str, Any] = {**({"layers": layers} if family == "alt" else {}), **options}
    values |= {"backbone": name_backbone(backbone), "frames": default_frames if frames is None else frames, "r": r}
    config = FAMILIES[family].config(**values)  # checked before any file is read
    published = _open_published(family, backbone, pretrained)
    if published is not None and frames is None:
        config = dataclasses.replace(config, frames=published.frames)
    if published is None:
        loaded = build_clip(backbone, pretrained, quick_gelu=config.quick_gelu)
    else:
        loaded = build_clip(backbone, None, quick_gelu=config.quick_gelu is not False)  # as all of them were trained
        if published.fill_text_tower(loaded.clip):
            loaded = loaded._replace(pretrained=Path(published.path).name)
    config = dataclasses.replace(config, quick_gelu=loaded.quick_gelu)
    text_source = loaded.text_source()  # before the tower is patched
    visual = find_host(loaded.clip).take_tower(loaded.clip)
    scale = loaded.clip.logit_scale.detach().exp().reshape(())
    text = None if config.text == "cached" else TextTower(loaded.clip, config.num_vectors)
    model = load_family(family)(config, visual, scale, text)
    if published is not None:
        published.load_into(model)
    model.joint_text_source = text_source
    return model, loaded


def _open_published(family: str, backbone: Backbone, pretrained: str | os.PathLike[str] | None) -> XClipFile | None:
    """Returns the published X-CLIP that ``pretrained`` names, if it is for such a model; None: weights of a CLIP."""
    if family != "xclip" or not isinstance(backbone, str) or backbone == "mini" or has_own_weights(backbone):
        return None
    from .xclip_weights import open_xclip

    return open_xclip(pretrained)


def create_text_encoder(
    name: str,
    *,
    pretrained: str | None = None,
    quick_gelu: bool | None = None,
    device: str | torch.device = "cpu",
) -> TextEncoder:
    """Creates the text encoder of a backbone.

    The tokenizer is open_clip's own, whose vocabulary ships with it, that of the small CLIP's weights, or that of the
    path from which transformers loads a model.

    Args:
        name: an open_clip model (``ViT-B-16``), a model of this package (``alt-b16``, ``mit-l14``, ``alt-mini``), or
            ``hf:PATH``.
        pretrained: an open_clip tag, or the path of a checkpoint ("entity-world" for the small CLIP); None: random
            weights.
        quick_gelu: the tower's activation; None: as the tag's weights were trained.
        device: the device of the tower.

    Raises:
        ValueError: there is no model of that name, or its weights could not be loaded.
    """
    backbone = BACKBONES[parse_name(name)[1]][0] if name in FAMILIES or name in list_models() else name
    loaded = build_clip(backbone, pretrained, quick_gelu=quick_gelu)
    clip = loaded.clip
    find_host(clip).drop_tower(clip)  # keep only the text side in memory
    clip.requires_grad_(False).eval()
    return loaded._replace(clip=clip.to(device)).text_encoder()


def _with_embeddings(corpus: Any, loaded: LoadedClip) -> Any:
    """Embeds a corpus with this CLIP if it has no embeddings."""
    if isinstance(corpus, str | os.PathLike):
        from ..corpus import Corpus

        corpus = Corpus.load(corpus)
    if not isinstance(corpus, Tensor) and getattr(corpus, "embeddings", None) is None and hasattr(corpus, "embed"):
        return corpus.embed(loaded.text_encoder())
    return corpus


def _templates(model: VideoModel, loaded: LoadedClip) -> str:
    """Returns the templates of the class texts: the model's published ones, or bare names for a CLIP trained so."""
    return loaded.templates if loaded.templates == "none" else model.templates or loaded.templates
