"""Saves a whole video model as one safetensors file, loads it, and reads its weights into an existing model."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alt.corpus import Corpus, check_encoders
from alt.corpus.entity import parse_source
from alt.files import describe_error, read_tensors, replacing
from alt.hosts import find_tower, get_host
from alt.validation import plain

from .clip_file import bare_name
from .families import FAMILIES, load_family
from .header import FORMAT, HEADER_KEY, OF_DATA, check_clip_size, check_fit, check_sizes, read_header
from .text_tower import TextTower

__all__ = ["WEIGHTS_NAME", "load_model", "load_weights", "model_file", "read_header", "save_model"]

WEIGHTS_NAME = "model.safetensors"
"""File in the folder of a run."""

_NO_WEIGHTS = {
    *("r", "inflection", "prop_attn", "grad_checkpointing", "cross_frame"),
    *("tau", "gumbel", "hard", "sim_scale", "drop_path"),
}
"""Fields of a configuration that do not affect parameter names or shapes."""


def save_model(model: nn.Module, path: str | os.PathLike[str]) -> Path:
    """Writes a model as one safetensors file, every parameter and buffer bit for bit.

    JSON in its metadata holds the family, the configuration, the sizes of the tower, the class names and how they were
    embedded, the entities of the corpus, and the text encoder. The file is written beside ``path`` and then replaces
    it, so a full disk or Ctrl-C leaves the previous file unchanged.

    Raises:
        TypeError: the model is not one of this package. ValueError: the name does not end in .safetensors.
        OSError: the file could not be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    model = getattr(model, "_orig_mod", model)  # torch.compile wraps the model
    if model.training and getattr(model, "text", None) is not None:
        model.refresh_texts()  # type: ignore[operator]
    header = {"format": FORMAT, "family": _family_of(model), **_description(model)}
    target = Path(path)
    if target.suffix != ".safetensors":
        raise ValueError(f"path: expected a .safetensors file, got {target.name!r}")
    named = ((bare_name(name), tensor) for name, tensor in model.state_dict().items())  # parts may be compiled too
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in named}
    with replacing(target, "the model") as temporary:
        try:
            save_file(state, temporary, {HEADER_KEY: json.dumps(header)})
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from None
    return target


def load_model(path: str | os.PathLike[str], device: str | torch.device = "cpu", *, frames: int | None = None) -> Any:
    """Returns the video model that :func:`save_model` wrote, with classes and corpus, in training mode.

    Args:
        path: the file, or the folder of a run with ``model.safetensors``. device: of the model.
        frames: T, if it differs from the saved number; possible if no weight depends on it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a model of this package, or of a newer version, or its weights need other ``frames``.
    """
    path = model_file(path)
    header = read_header(path)
    state = _read_state(path)
    check_sizes(header, state, path)
    model = _build(header, frames, path)
    own = model.state_dict()
    bound = [name for name in own if name in state and frames and not name.startswith(OF_DATA)]
    if any(own[name].shape != state[name].shape for name in bound):
        raise ValueError(f"frames: {path} has weights for {header['config']['frames']} frames, got {frames}")
    check_fit(own, state, path)
    check_clip_size(model, path)
    model.load_state_dict(state, assign=True)
    model.to(device)
    if header["statistics"] is not None:
        mean, std = header["statistics"]
        model.backbone.statistics = (tuple(mean), tuple(std))
    model.joint_text_source = parse_source(header["text_encoder"])
    _adopt_classes(model, header)
    _adopt_corpus(model, header)
    return model


def _build(header: dict[str, Any], frames: int | None, path: Path) -> Any:
    """Returns the model of a description, on the device "meta"."""
    builder = load_family(header["family"])
    values = header["config"]
    known = builder.config_class.__dataclass_fields__
    unknown = [name for name in values if name not in known]
    if unknown:
        raise ValueError(f"{path} was written by a newer version: it has the unknown option {unknown[0][:80]!r}")
    if "frames" not in values:
        raise ValueError(f"{path} is not a model file that can be used: its description names no frames")
    try:
        config = builder.config_class(**{**values, "frames": frames or values["frames"]})
        with torch.device("meta"):
            return builder(config, _tower(config, header), torch.empty(()), _text(config, header))
    except Exception as error:  # sizes of a file reach constructors of other packages, which raise anything
        raise ValueError(f"{path} describes a model that cannot be built ({describe_error(error)})") from error


def _read_state(path: Path) -> dict[str, Tensor]:
    return {bare_name(name): tensor for name, tensor in read_tensors(path)[0].items()}


def load_weights(
    model: nn.Module, path: str | os.PathLike[str], *, keep_classes: bool = False, keep_corpus: bool = False
) -> int:
    """Reads the weights of a saved model into an existing model of the same configuration.

    The model keeps its own values of fields that no weight depends on: r, inflection, prop_attn, grad_checkpointing,
    cross_frame, tau, gumbel, hard, sim_scale, drop_path, and frames and strategy if they bring no weights. With
    ``keep_classes`` also head.

    Args:
        model: a video model. path: a file of :func:`save_model`, or the folder of a run.
        keep_classes: keep the model's classes and head. keep_corpus: keep its corpus.

    Returns:
        The number of tensors that were read.

    Raises:
        FileNotFoundError, ValueError: there is no such file, its configuration differs (the fields are named), or
            classes or corpus are kept that another text encoder embedded. The model is unchanged.
    """
    path = model_file(path)
    header = read_header(path)
    model = getattr(model, "_orig_mod", model)
    family, config = _family_of(model), plain(model.config)
    if header["family"] != family:
        raise ValueError(f"{path} is a model of the family {header['family']!r}, and this one is of {family!r}")
    state = _read_state(path)
    check_sizes(header, state, path)
    own = model.state_dict()
    left = (("head.", "text.ids") if keep_classes else ()) + (("alignment.entities",) if keep_corpus else ())
    state, own = _without(state, left), _without(own, left)
    other = [
        name
        for name in own.keys() | state.keys()
        if name not in own
        or name not in state
        or (own[name].shape != state[name].shape and not name.startswith(OF_DATA))
    ]
    differing = [name for name in _differences(header["config"], config) if name not in _NO_WEIGHTS]
    maybe = {
        "frames",
        "strategy",
        "quick_gelu",
        "text",
        "prompting",
        "prompt_vectors",
        *(["head"] if keep_classes else []),
    }
    decisive = [name for name in differing if name not in maybe]
    if bool(header["config"].get("quick_gelu")) != bool(config.get("quick_gelu")):
        decisive.append("quick_gelu")
    if decisive or other:
        fields = decisive or differing
        difference = _describe_mismatch(fields, header, config, other)
        raise ValueError(f"{path} has another configuration than the model: {difference}")
    check_fit(own, state, path)
    source = parse_source(header["text_encoder"])
    if keep_classes or keep_corpus:
        kept: Any = model.joint_text_source
        check_encoders("the text that the model keeps", kept, str(path), source)
    _make_room(model, state)
    model.load_state_dict(state, strict=False)
    if keep_classes:
        model.refresh_texts()  # type: ignore[operator]  # its own names, by the text tower of the file
    else:
        _adopt_classes(model, header)
    if not (keep_classes or keep_corpus):
        model.joint_text_source = source
    if not keep_corpus:
        _adopt_corpus(model, header)
    return len(state)


def _without(state: Mapping[str, Tensor], left: tuple[str, ...]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.startswith(left)}


def model_file(path: str | os.PathLike[str]) -> Path:
    """Returns the weights' file of a model that is named by its file or by the folder of a run."""
    return Path(path) / WEIGHTS_NAME if Path(path).is_dir() else Path(path)


def _family_of(model: Any) -> str:
    name = f"{type(model).__module__}:{type(model).__qualname__}"
    for family, entry in FAMILIES.items():
        if entry.home == name:
            return family
    raise TypeError(f"model: expected a video model of this package, got {type(model).__name__}")


def _description(model: Any) -> dict[str, Any]:
    corpus = getattr(model, "corpus", None)
    entities = None if corpus is None else [list(entity) for entity in corpus]
    host, tower = model.backbone.host, model.backbone.tower
    return {
        "config": plain(model.config),
        "host": host.name,
        "tower": host.describe(tower),
        "statistics": [list(part) for part in model.backbone.statistics],
        "text_tower": None if model.text is None else host.describe_text(model.text.clip),
        "classes": list(model.classes),
        "texts": None if model.class_text_source is None else model.class_text_source._asdict(),
        "corpus": entities,
        "text_encoder": None if model.joint_text_source is None else model.joint_text_source._asdict(),
    }


def _tower(config: Any, header: dict[str, Any]) -> nn.Module:
    """Builds a tower like the saved one on torch's default device, by the backbone's open_clip name if it has one."""
    host = get_host(header["host"])
    if host.name == "open_clip":
        from .clip import build_clip, is_built_in

        if is_built_in(config.backbone):  # any other name would have open_clip ask the Hub, or read another file
            return find_tower(build_clip(config.backbone, None, quick_gelu=config.quick_gelu).clip)[1]
    return host.build(header["tower"], quick_gelu=bool(config.quick_gelu))


def _text(config: Any, header: dict[str, Any]) -> TextTower | None:
    """Builds a text tower like the saved one, if the model holds one."""
    if header["text_tower"] is None:
        return None
    clip = get_host(header["host"]).build_text(header["text_tower"], quick_gelu=bool(config.quick_gelu))
    return TextTower(clip, config.num_vectors)


def _adopt_classes(model: Any, header: dict[str, Any]) -> None:
    model.classes = list(header["classes"])
    model.class_text_source = parse_source(header["texts"])


def _adopt_corpus(model: Any, header: dict[str, Any]) -> None:
    alignment = getattr(model, "alignment", None)
    if alignment is None or header["corpus"] is None:
        return
    rows = alignment.entities.detach().cpu()
    model.corpus = replace(Corpus.from_entities(header["corpus"]), embeddings=rows, encoder=model.joint_text_source)


def _make_room(model: Any, state: dict[str, Tensor]) -> None:
    """Resizes classes and corpus to the rows of the file, which load_state_dict then fills."""
    for name, tensor in state.items():
        if not name.startswith(OF_DATA):
            continue
        owner_name, _, leaf = name.rpartition(".")
        owner = model.get_submodule(owner_name)
        own = getattr(owner, leaf)
        if own.shape != tensor.shape:
            room = own.detach().new_zeros(tensor.shape)
            setattr(owner, leaf, nn.Parameter(room, own.requires_grad) if isinstance(own, nn.Parameter) else room)


def _differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    return [name for name in {**there, **here} if there.get(name) != here.get(name)]


def _describe_mismatch(fields: list[str], header: dict[str, Any], config: dict[str, Any], other: list[str]) -> str:
    if fields:
        found = (f"{name} is {header['config'].get(name)!r} there and {config.get(name)!r} here" for name in fields)
        return ", ".join(found)
    return f"{len(other)} weights have another shape or are missing, {min(other)} first"
