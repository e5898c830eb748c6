"""Reads X-CLIP's checkpoints, the authors' and transformers', and writes transformers'."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from alt.files import replacing
from alt.hosts import find_host
from alt.hosts.xclip_names import from_authors, from_transformers, is_transformers, to_transformers

from .clip import check_activation
from .clip_file import read_clip_weights
from .clip_weights import BackboneReport
from .config import num_heads
from .xclip import XClip

__all__ = ["XClipFile", "load_xclip", "open_xclip", "save_xclip"]

_WEIGHTS, _CONFIG = "model.safetensors", "config.json"
_POSITIONS, _TEXT = "integration.positions", "text.clip."


def load_xclip(model: XClip, source: str | os.PathLike[str] | Mapping[str, Tensor]) -> BackboneReport:
    """Loads a published X-CLIP into a model of the same sizes.

    Class texts are embedded again if the model holds its text tower. Otherwise they stay: the published models were
    trained with CLIP's own text tower, unchanged.

    Args:
        model: an X-CLIP with messages, integration transformer and prompts, and with QuickGELU.
        source: the authors' checkpoint (.pth), a file or folder that transformers wrote, or a state dict of either.

    Returns:
        The loaded names, those that the source does not have, and tensors of the source that the model does not have
        (the text tower's, with ``text="cached"``).

    Raises:
        TypeError: the model is no X-CLIP.
        ValueError: the source is no X-CLIP, or one of other sizes or activation. The model is unchanged.
    """
    _require(model)
    tensors, where = _read(source)
    return _load(model, _translate(tensors), f"source: {where}")


class XClipFile(NamedTuple):
    """tensors: of a published X-CLIP, by our names. unknown: names of those that are not X-CLIP's. path: as given."""

    tensors: dict[str, Tensor]
    unknown: list[str]
    path: str

    @property
    def frames(self) -> int:
        """Returns T, the frames that the integration transformer was trained with."""
        return len(self.tensors[_POSITIONS])

    def fill_text_tower(self, clip: Any) -> bool:
        """Loads the file's text tower into a CLIP of open_clip. False: the file has none.

        Raises:
            ValueError: it is of another size, or not complete.
        """
        host = find_host(clip)
        beside = {name for name, _ in host.text_modules(clip)}
        own = {name: tensor for name, tensor in clip.state_dict().items() if name.rpartition(".")[0] in beside}
        own.pop("logit_scale", None)
        state = {name.removeprefix(_TEXT): t for name, t in self.tensors.items() if name.startswith(_TEXT)}
        if not state:
            return False
        for name, tensor in own.items():
            if name not in state or state[name].shape != tensor.shape:
                there = list(state[name].shape) if name in state else "missing"
                raise ValueError(
                    f"pretrained: {self.path} has another text tower: {name} is {there} there and "
                    f"{list(tensor.shape)} in the model"
                )
        clip.load_state_dict({name: state[name] for name in own}, strict=False)
        return True

    def load_into(self, model: XClip) -> BackboneReport:
        """Loads the tensors into a model. Errors as in :func:`load_xclip`, naming ``pretrained``."""
        _require(model)
        return _load(model, (self.tensors, self.unknown), f"pretrained: {self.path}")


def open_xclip(path: str | os.PathLike[str] | None) -> XClipFile | None:
    """Opens a published X-CLIP; None: ``path`` is neither a file nor a folder with one, but perhaps a CLIP.

    Raises:
        ValueError: the file cannot be read.
    """
    if path is None or not (Path(path).is_file() or (Path(path) / _WEIGHTS).is_file()):
        return None
    tensors, where = _read(path, "pretrained")
    found, unknown = _translate(tensors)
    return XClipFile(found, unknown, where) if _is_xclip(found) else None


def _translate(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Returns tensors of either format by our names, and the names of those that are not X-CLIP's."""
    return from_transformers(state) if is_transformers(state) else from_authors(state)


def _is_xclip(found: Mapping[str, Tensor]) -> bool:
    return _POSITIONS in found and any("message_adapter" in name for name in found)


def _load(model: XClip, translated: tuple[dict[str, Tensor], list[str]], where: str) -> BackboneReport:
    """Loads translated tensors; ``where`` begins every message."""
    found, unknown = translated
    own = model.state_dict()
    wanted = [name for name in own if not name.startswith("head.") and name != "text.ids"]
    if not _is_xclip(found):
        raise ValueError(f"{where} holds no X-CLIP, which has messages and an integration transformer")
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ValueError(f"{where} has no weights for {len(missing)} tensors of the model, {missing[0]} first")
    for name in wanted:
        if found[name].shape != own[name].shape:
            raise ValueError(
                f"{where} has another size: {name} is {list(found[name].shape)} there and {list(own[name].shape)} in "
                "the model"
            )
    argument, _, path = where.partition(": ")
    check_activation(path, True, bool(model.config.quick_gelu), argument)
    model.load_state_dict({name: found[name] for name in wanted}, strict=False)
    model.refresh_texts()
    unused = [*unknown, *(name for name in found if name not in own)]
    return BackboneReport(tuple(wanted), (), tuple(unused))


def _require(model: Any) -> None:
    if not isinstance(model, XClip):
        raise TypeError(f"model: expected an X-CLIP, got {type(model).__name__}")
    config = model.config
    lacking = [name for name in ("messages", "layers", "prompt_layers") if not getattr(config, name)]
    host = model.backbone.host
    if host.name != "open_clip":
        raise TypeError(f"model: X-CLIP's weights are of open_clip's tower, got one over {host.supports}")
    if lacking or config.strategy not in ("full", "frozen"):
        what = f"{lacking[0]}={getattr(config, lacking[0])}" if lacking else f"strategy={config.strategy!r}"
        raise ValueError(f"model: the published X-CLIP has all its parts and no adapters, got one with {what}")


def _read(
    source: str | os.PathLike[str] | Mapping[str, Tensor], argument: str = "source"
) -> tuple[Mapping[str, Tensor], str]:
    if isinstance(source, Mapping):
        return source, "the state dict"
    path = Path(source) / _WEIGHTS if Path(source).is_dir() else Path(source)
    try:
        return read_clip_weights(path).tensors, os.fspath(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{argument}: {error}") from None


def save_xclip(model: XClip, folder: str | os.PathLike[str]) -> Path:
    """Writes a model in transformers' format, which ``XCLIPModel.from_pretrained(folder)`` reads.

    Args:
        model: an X-CLIP with all its parts that holds its text tower (``text="held"`` or "trained"), with QuickGELU.
            The names of its classes are not part of the format.
        folder: gets ``config.json`` and ``model.safetensors``; it is made if missing.

    Returns:
        The folder.

    Raises:
        TypeError, ValueError: the model cannot be written in this format. OSError: a file could not be written.
    """
    from safetensors.torch import save

    _require(model)
    if model.text is None:
        raise ValueError("model: the format contains the text tower; create the model with text='held', got 'cached'")
    if not model.config.quick_gelu:
        raise ValueError("model: the format has QuickGELU everywhere; create the model with quick_gelu=True, got False")
    state = to_transformers({name: tensor.detach().cpu() for name, tensor in model.state_dict().items()})
    data = save({name: tensor.contiguous() for name, tensor in state.items()}, {"format": "pt"})
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    with replacing(target / _WEIGHTS, "the model") as file:
        file.write_bytes(data)
    with replacing(target / _CONFIG, "the configuration") as file:
        file.write_text(json.dumps(_configuration(model), indent=2) + "\n", encoding="utf-8")
    return target


def _configuration(model: XClip) -> dict[str, Any]:
    """Returns the fields of transformers' XCLIPConfig."""
    config, width = model.config, model.width
    host, tower = model.backbone.host, model.backbone.tower
    assert model.text is not None
    vision, text = host.describe(tower), host.describe_text(model.text.clip)
    height, across = vision["image_size"]
    if height != across or len(set(vision["patch_size"])) > 1:
        raise ValueError(f"model: the format has square images and patches, got images of {height} x {across} pixels")
    return {
        "architectures": ["XCLIPModel"],
        "model_type": "xclip",
        "dtype": str(model.logit_scale.dtype).removeprefix("torch."),
        "projection_dim": width,
        "prompt_layers": config.prompt_layers,
        "prompt_alpha": config.alpha,
        "prompt_hidden_act": "quick_gelu",
        "prompt_num_attention_heads": num_heads(config.prompt_heads, width),
        "logit_scale_init_value": float(torch.log(model.logit_scale)),
        "text_config": {
            "model_type": "xclip_text_model",
            "vocab_size": text["vocab_size"],
            "hidden_size": text["width"],
            "intermediate_size": round(text["width"] * text["mlp_ratio"]),
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "max_position_embeddings": text["context_length"],
            "hidden_act": "quick_gelu",
        },
        "vision_config": {
            "model_type": "xclip_vision_model",
            "hidden_size": vision["width"],
            "intermediate_size": round(vision["width"] * vision["mlp_ratio"]),
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": vision["heads"],
            "image_size": height,
            "patch_size": vision["patch_size"][0],
            "num_frames": config.frames,
            "hidden_act": "quick_gelu",
            "mit_hidden_size": width,
            "mit_intermediate_size": 4 * width,
            "mit_num_hidden_layers": config.layers,
            "mit_num_attention_heads": num_heads(config.heads, width),
        },
    }
