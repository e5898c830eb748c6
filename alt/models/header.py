"""The description in a model file, which decides what is built: read, and compared with the file's tensors.

It may come from anybody. It names classes of this package and sizes, never another file or a download, and nothing is
built from sizes that the tensors do not have.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alt.corpus.entity import parse_entity, parse_source
from alt.files import check_decoded, parse_json, read_metadata

from .families import FAMILIES

__all__ = [
    "FORMAT",
    "HEADER_KEY",
    "OF_DATA",
    "check_clip_size",
    "check_fit",
    "check_sizes",
    "parse_header",
    "read_header",
]

FORMAT = 2
"""2 has ``texts``, ``text_encoder`` and all fields of the entities. Files of format 1 are read as well."""
HEADER_KEY = "alt_model"
OF_DATA = ("head.", "text.ids", "alignment.entities")  # tensors that depend on classes and corpus


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a saved model's description.

    Its keys are ``family``, ``config``, ``host``, ``tower``, ``statistics`` (mean and standard deviation that the tower
    expects; None: CLIP's), ``text_tower`` (if the model holds one), ``classes``, ``texts`` (the model's
    ``class_text_source``), ``corpus`` and ``text_encoder`` (its ``joint_text_source``).

    Raises:
        FileNotFoundError: there is no such file. ValueError: it is not a model of this package, or of a newer version.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no model at {path}")
    try:
        metadata = read_metadata(path)
    except ValueError as error:
        raise ValueError(
            f"{path} is not a model file of this package: {str(error).removeprefix(f'{path}: ')}"
        ) from None
    if HEADER_KEY not in metadata:
        raise ValueError(
            f"{path} holds weights, but is not a model file of this package; load_backbone reads CLIP's own weights"
        )
    return parse_header(metadata[HEADER_KEY], path)


def parse_header(text: str, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the description in a file's metadata, its fields of the right kinds.

    Raises:
        ValueError: it is of another version, or a field is of another kind. The message is one sentence.
    """
    header = parse_json(text, f"{path} is not a model file of this package")
    if not isinstance(header, dict):
        raise ValueError(f"{path} is not a model file of this package: its description is no group of fields")
    if header.get("format") not in range(1, FORMAT + 1):
        raise ValueError(
            f"{path} is a model file of format {str(header.get('format'))[:40]}, and this version reads 1 to {FORMAT}"
        )
    header.setdefault("host", "open_clip")  # files of version 0.1 do not name it
    header.setdefault("texts", None)
    header.setdefault("text_encoder", None)
    statistics = header.setdefault("statistics", None)  # files of this format that lack it have CLIP's
    corpus, held = header.get("corpus"), header.setdefault("text_tower", None)
    right = {
        "family": isinstance(header.get("family"), str) and header["family"] in FAMILIES,
        "config": isinstance(header.get("config"), dict),
        "host": isinstance(header["host"], str),
        "tower": isinstance(header.get("tower"), dict),
        "statistics": statistics is None or _are_statistics(statistics),
        "text_tower": held is None or isinstance(held, dict),
        "classes": _are_texts(header.get("classes")),
        "texts": _is_source(header["texts"]),
        "corpus": corpus is None or (isinstance(corpus, list) and all(map(_is_entity, corpus))),
        "text_encoder": _is_source(header["text_encoder"]),
    }
    wrong = [name for name, fits in right.items() if not fits]
    if wrong:
        raise ValueError(f"{path} is not a model file that can be used: its description has no valid {wrong[0]}")
    return header


def _are_statistics(value: Any) -> bool:
    """Whether a value is [mean, standard deviation], three numbers each."""
    if not isinstance(value, list) or [len(part) for part in value if isinstance(part, list)] != [3, 3]:
        return False
    numbers = [number for part in value for number in part]
    finite = all(isinstance(number, int | float) and math.isfinite(number) for number in numbers)
    return finite and all(number > 0 for number in value[1])


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) and _is_writable(value) for value in values)


def _is_entity(value: Any) -> bool:
    try:
        entity = parse_entity(value)
    except (TypeError, ValueError, KeyError):
        return False
    return _are_texts([*entity[:3], *entity.sources, entity.origin])


def _is_source(value: Any) -> bool:
    """Whether a value is None, or has the fields of a :class:`~alt.models.text.TextSource`."""
    try:
        source = parse_source(value)
    except (TypeError, ValueError):
        return False
    if source is None:
        return True
    texts = [source.backbone, source.pretrained or "", source.sha256, *source.templates]
    return _are_texts(texts) and all(text.count("{}") == 1 for text in source.templates)


def _is_writable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair, which no file can hold
        return False
    return True


def check_sizes(header: Mapping[str, Any], state: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Checks numbers of layers, classes and entities against the tensors, before anything is built.

    Raises:
        ValueError: the file describes more than it holds.
    """
    for group in ("tower", "text_tower", "config"):
        for name, value in (header[group] or {}).items():
            if "layers" in name and isinstance(value, int) and value > len(state):
                raise ValueError(f"{path}: {group}.{name} is {value:.3g}, and the file has {len(state)} tensors")
    rows = [len(tensor) for name, tensor in state.items() if name.startswith("head.") and tensor.dim()]
    if any(count != len(header["classes"]) for count in rows):
        raise ValueError(f"{path}: it names {len(header['classes'])} classes, and its head has {rows[0]}")
    entities = state.get("alignment.entities")
    if header["corpus"] is not None and entities is not None and len(entities) != len(header["corpus"]):
        raise ValueError(f"{path}: it names {len(header['corpus'])} entities, and has tensors of {len(entities)}")


def check_fit(own: Mapping[str, Tensor], state: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Checks that a file has the tensors of a model; rows of classes and corpus may differ.

    Raises:
        ValueError: the first tensor that is missing, unknown, or of another shape or kind is named.
    """
    for name in [*own, *(name for name in state if name not in own)]:
        if name not in state or name not in own:
            where = "has no" if name not in state else "has an unknown"
            raise ValueError(f"{path} {where} tensor {name[:100]!r}")
        here, there = own[name], state[name]
        begin = 1 if name.startswith(OF_DATA) else 0
        if here.dim() != there.dim() or here.shape[begin:] != there.shape[begin:]:
            raise ValueError(f"{path}: {name} is {list(there.shape)}, and the model's is {list(here.shape)}")
        floats = there.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
        if here.is_floating_point() != there.is_floating_point() or (here.is_floating_point() and not floats):
            raise ValueError(f"{path}: {name} is {there.dtype}, and the model's is {here.dtype}")


def check_clip_size(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Checks that one clip of the model's frames and image size fits into the limit of decoded files."""
    height, width = model.backbone.image_size  # type: ignore[union-attr,misc]
    check_decoded(model.config.frames * 3 * height * width * 4, f"{path}: a clip of it")  # type: ignore[union-attr,operator]
