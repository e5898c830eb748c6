"""Weights on disk: a whole video model in one safetensors file, and CLIP's weights into a model's tower."""

from __future__ import annotations

import json
import os
import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from alt.corpus import Corpus
from alt.files import replacing
from alt.validation import plain

__all__ = ["BackboneReport", "load_backbone", "load_model", "load_weights", "read_header", "save_model"]

_FORMAT = 1
_KEY = "alt_model"
_NO_WEIGHTS = {"r", "inflection", "prop_attn", "grad_checkpointing", "tau", "gumbel", "hard", "sim_scale"}
"""Fields of a configuration that change what is done with the weights, but not which weights there are."""

_OF_DATA = ("head.", "alignment.entities")  # what depends on classes and corpus


def save_model(model: nn.Module, path: str | os.PathLike[str]) -> Path:
    """One safetensors file: every parameter and buffer bit for bit, and as JSON in its metadata the kind of model,
    its configuration, the sizes of its tower, the names of the classes, and texts and categories of the corpus.

    Written beside ``path`` and then put in its place: a full disk or Ctrl-C leaves the file of before as it was.

    Raises:
        TypeError: no model of this package. ValueError: the name does not end in .safetensors.
        OSError: it could not be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    header = {"format": _FORMAT, "family": _family_of(model), **_description(model)}
    target = Path(path)
    if target.suffix != ".safetensors":
        raise ValueError(f"path: expected a .safetensors file, got {target.name!r}")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with replacing(target, "the model") as temporary:
        try:
            save_file(state, temporary, {_KEY: json.dumps(header)})
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from None
    return target


def load_model(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> Any:
    """The video model that :func:`save_model` wrote, with classes and corpus, in training mode.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no model of this package, or of a newer version of it.
    """
    from . import registry

    header = read_header(path)
    builder = registry.load_family(header["family"])
    values = dict(header["config"])
    known = builder.config_class.__dataclass_fields__
    unknown = [name for name in values if name not in known]
    if unknown:
        raise ValueError(f"{path} was written by a newer version: it has the unknown option {unknown[0]!r}")
    config = builder.config_class(**values)
    with torch.device("meta"):
        model = builder(config, _tower(config, header["tower"]), torch.empty(()))
    state = _tensors(path)
    model.load_state_dict(state, assign=True)
    model.to(device)
    model.classes = list(header["classes"])
    _adopt_corpus(model, header)
    return model


def load_weights(
    model: nn.Module, path: str | os.PathLike[str], *, keep_classes: bool = False, keep_corpus: bool = False
) -> None:
    """Weights of a saved model into one that is there, which must be of the same configuration.

    What no weight depends on may differ and stays the model's own: r, inflection, prop_attn, grad_checkpointing, tau,
    gumbel, hard, sim_scale. So may frames and strategy where they bring no weights.

    Args:
        model: a video model. path: a file of :func:`save_model`.
        keep_classes: leave the model's classes, and head, as they are. keep_corpus: leave its corpus.

    Raises:
        FileNotFoundError, ValueError: no such file, or one of another configuration; the fields are named. The model
            is not changed then.
    """
    header = read_header(path)
    model = getattr(model, "_orig_mod", model)
    family, config = _family_of(model), plain(model.config)
    differing = _differences(header["config"], config)
    decisive = [name for name in differing if name not in _NO_WEIGHTS | {"frames", "strategy", "quick_gelu"}]
    if header["family"] != family:
        raise ValueError(f"{path} is a model of the family {header['family']!r}, and this one is of {family!r}")
    state = _tensors(path)
    if keep_classes:
        state = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    if keep_corpus:
        state.pop("alignment.entities", None)
    own = model.state_dict()
    free = _OF_DATA  # these may have another number of rows
    other = [
        name
        for name in own.keys() | state.keys()
        if not name.startswith(free) and (name not in own or name not in state or own[name].shape != state[name].shape)
    ]
    if "quick_gelu" in differing and bool(header["config"].get("quick_gelu")) != bool(config.get("quick_gelu")):
        decisive.append("quick_gelu")
    if decisive or other:
        fields = decisive or [name for name in differing if name not in _NO_WEIGHTS]
        raise ValueError(f"{path} is of another configuration than the model: {_told(fields, header, config, other)}")
    _make_room(model, state)
    model.load_state_dict(state, strict=False)
    if not keep_classes:
        model.classes = list(header["classes"])
    if not keep_corpus:
        _adopt_corpus(model, header)


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a saved model is, without its weights: keys ``family``, ``config``, ``tower``, ``classes``, ``corpus``.

    Raises:
        FileNotFoundError, ValueError: as :func:`load_model`.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no model at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(_KEY, "null"))
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a model file of this package: {error}") from None
    if not isinstance(header, dict):
        raise ValueError(
            f"{path} holds weights, but is not a model file of this package; load_backbone reads CLIP's own weights"
        )
    if header.get("format") != _FORMAT:
        raise ValueError(f"{path} is a model file of format {header.get('format')}, and this version reads {_FORMAT}")
    return header


class BackboneReport(NamedTuple):
    """What a file brought into a model: names as in ``model.state_dict()``, and as in the file where unused.

    loaded: filled. missing: parameters that the file does not have, for CLIP's weights exactly those of the modules
    that were added to the tower. unused: what the file has besides, such as the text tower.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]


def load_backbone(model: Any, pretrained: str | os.PathLike[str]) -> BackboneReport:
    """CLIP's weights into the tower of a video model; everything that was added to the tower stays as it is.

    Args:
        model: a video model. pretrained: a tag of open_clip ("openai"; "entity-world" for the small CLIP), or a file:
            OpenAI's archive, open_clip's checkpoint (.pt, .safetensors), a saved model of this package.

    Raises:
        ValueError: the weights cannot be had, are of another tower, or were trained with the other activation. The
            model is not changed then.
    """
    file, quick_gelu = _clip_weights(model, pretrained)
    prefix = next((p for p in ("backbone.visual.", "visual.", "") if f"{p}conv1.weight" in file), None)
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
    """State dict of a file or tag, and its activation where that is known."""
    path = Path(pretrained)
    if not path.is_file():
        from .registry import build_clip

        loaded = build_clip(model.config.backbone, pretrained)
        return loaded.clip.state_dict(), loaded.quick_gelu
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
        except SafetensorError as error:
            raise ValueError(f"pretrained: {path} is no safetensors file: {error}") from None
        activation = bool(json.loads(metadata[_KEY])["config"].get("quick_gelu")) if _KEY in metadata else None
        return _tensors(path), activation
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is old: so are OpenAI's archives
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # pickle, zip and torch have a dozen kinds of them
            try:
                return dict(torch.jit.load(path, map_location="cpu").state_dict()), True
            except RuntimeError:
                raise ValueError(f"pretrained: {path} is no checkpoint: {str(error).splitlines()[0][:200]}") from None
    content = content.get("state_dict", content) if isinstance(content, dict) else {}
    tensors = {str(name).removeprefix("module."): value for name, value in content.items()}
    return {name: value for name, value in tensors.items() if isinstance(value, Tensor)}, None


def _tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    # Copies: what is read lies in the mapped file, at odd addresses, where vector code rounds its sums differently.
    return {name: tensor.clone() for name, tensor in load_file(path).items()}


def _family_of(model: Any) -> str:
    from .registry import FAMILIES

    name = f"{type(model).__module__}:{type(model).__qualname__}"
    for family, entry in FAMILIES.items():
        if entry.home == name:
            return family
    raise TypeError(f"model: expected a video model of this package, got {type(model).__name__}")


def _description(model: Any) -> dict[str, Any]:
    visual = model.backbone.visual
    block = visual.transformer.resblocks[0]
    tower = {
        "image_size": list(visual.image_size),
        "patch_size": list(visual.patch_size),
        "width": visual.conv1.out_channels,
        "layers": len(visual.transformer.resblocks),
        "heads": block.attn.num_heads,
        "mlp_ratio": block.mlp.c_fc.out_features / visual.conv1.out_channels,
        "output_dim": visual.proj.shape[1],
    }
    corpus = getattr(model, "corpus", None)
    entities = None if corpus is None else [list(entity) for entity in corpus]
    return {"config": plain(model.config), "tower": tower, "classes": list(model.classes), "corpus": entities}


def _tower(config: Any, sizes: dict[str, Any]) -> nn.Module:
    """An image tower of these sizes, on torch's default device: open_clip's of that name where there is one."""
    import open_clip
    from open_clip.transformer import QuickGELU, VisionTransformer

    if open_clip.get_model_config(config.backbone) is not None:
        from .registry import build_clip

        return build_clip(config.backbone, None, quick_gelu=config.quick_gelu).clip.visual
    sizes = {name: tuple(value) if isinstance(value, list) else value for name, value in sizes.items()}
    return VisionTransformer(**sizes, act_layer=QuickGELU if config.quick_gelu else nn.GELU)


def _adopt_corpus(model: Any, header: dict[str, Any]) -> None:
    alignment = getattr(model, "alignment", None)
    if alignment is None or header["corpus"] is None:
        return
    bare = Corpus.from_entities(header["corpus"])
    model.corpus = Corpus(
        bare.units, bare.descriptions, bare.categories, bare.sources, alignment.entities.detach().cpu()
    )


def _make_room(model: Any, state: dict[str, Tensor]) -> None:
    """Classes and corpus of another number: rows as in the file, to be filled by load_state_dict."""
    for name, tensor in state.items():
        if not name.startswith(_OF_DATA):
            continue
        owner_name, _, leaf = name.rpartition(".")
        owner = model.get_submodule(owner_name)
        own = getattr(owner, leaf)
        if own.shape != tensor.shape:
            room = own.detach().new_zeros(tensor.shape)
            setattr(owner, leaf, nn.Parameter(room, own.requires_grad) if isinstance(own, nn.Parameter) else room)


def _differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    return [name for name in {**there, **here} if there.get(name) != here.get(name)]


def _told(fields: list[str], header: dict[str, Any], config: dict[str, Any], other: list[str]) -> str:
    if fields:
        told = (f"{name} is {header['config'].get(name)!r} there and {config.get(name)!r} here" for name in fields)
        return ", ".join(told)
    return f"{len(other)} weights have another shape or are missing, {min(other)} first"
