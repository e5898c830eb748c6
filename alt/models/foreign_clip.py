"""CLIPs of other packages as backbones: a model that the caller built, or one that transformers loads by its path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from alt.errors import one_line
from alt.hosts import Host, find_host

from .loaded_clip import LoadedClip, check_activation
from .text import has_text_tower

__all__ = ["HF", "adopt_clip", "load_hf_clip"]

HF = "hf:"
"""Begins the name of a backbone that transformers loads: ``hf:PATH``, a folder or a name on the Hub."""

_BPE_WORDS = 49408  # of OpenAI's vocabulary, which ships with open_clip


class PaddedTokenizer:
    """A tokenizer of transformers that returns ids ``[n, context_length]``, padded and cut to this length.

    Towers that read the end of a text see no padding, and those without a causal mask were trained with this padding.
    """

    def __init__(self, tokenizer: Any, context_length: int) -> None:
        self.tokenizer, self.context_length = tokenizer, context_length

    def __call__(self, texts: Sequence[str]) -> Tensor:
        options = {"padding": "max_length", "truncation": True, "max_length": self.context_length}
        return self.tokenizer(list(texts), **options, return_tensors="pt").input_ids

    def count(self, texts: Sequence[str]) -> list[int]:
        """Returns the number of tokens of each text, uncut, with those that begin and end it."""
        return [len(ids) for ids in self.tokenizer(list(texts), verbose=False).input_ids]


def adopt_clip(model: Any, tokenizer: Any = None, *, quick_gelu: bool | None = None, name: str = "") -> LoadedClip:
    """Returns a CLIP that exists already as a backbone. Its weights are used as they are, and not copied.

    Args:
        model: a model with image and text tower in one space, of a package that a host knows: open_clip's,
            ``CLIPModel`` or ``SiglipModel`` of transformers, or OpenAI's.
        tokenizer: texts -> ids ``[n, context_length]``, or a tokenizer of transformers. None: that of the path from
            which transformers loaded the model, or OpenAI's if the text tower has 49408 words.
        quick_gelu: the activation that the caller expects; None: any.
        name: of the backbone in records; None: what the model tells of its origin, or its class.

    Raises:
        TypeError: the model has no text tower, or no host knows it.
        ValueError: it has another activation.
    """
    if not has_text_tower(model):
        raise TypeError(
            "backbone: expected a name (ViT-B-16, hf:PATH), a CLIP with image and text tower (open_clip's, OpenAI's, "
            f"transformers' CLIPModel or SiglipModel), or (CLIP, tokenizer), got {type(model).__name__}"
        )
    host = find_host(model)
    name = name or host.source_name(model) or f"{host.name}:{type(model).__name__}"
    own = any("quickgelu" in type(module).__name__.lower() for module in model.modules())
    check_activation(name, own, quick_gelu, "backbone")
    return LoadedClip(model, own, lambda: _tokenizer(host, model, tokenizer, name), "alt16", name, None, True)


def load_hf_clip(path: str, *, quick_gelu: bool | None = None) -> LoadedClip:
    """Returns the CLIP that transformers loads from ``path``, with its own tokenizer, on torch's default device.

    On the device "meta" only its configuration is read.

    Raises:
        ValueError: transformers is not installed or finds no model there, the model is of another kind, or weights are
            missing.
    """
    try:
        import transformers
    except ModuleNotFoundError:
        raise ValueError(
            f"backbone: {HF}{path} needs transformers; install it with: pip install 'alt-kernels[transformers]'"
        ) from None
    kinds = {"clip": transformers.CLIPModel, "siglip": transformers.SiglipModel}
    try:
        config = transformers.AutoConfig.from_pretrained(path)
    except Exception as error:  # of the hub, of the disk and of the file
        raise ValueError(f"backbone: transformers finds no model at {path!r} ({one_line(error)})") from None
    if config.model_type not in kinds:
        wanted = " or ".join(kinds)
        raise ValueError(f"backbone: {HF}{path}: expected a model of type {wanted}, got {config.model_type!r}")
    kind, device = kinds[config.model_type], torch.get_default_device()
    if device.type == "meta":
        return adopt_clip(kind(config), quick_gelu=quick_gelu, name=f"{HF}{path}")
    try:
        with torch.device("cpu"):
            model, report = kind.from_pretrained(path, dtype=torch.get_default_dtype(), output_loading_info=True)
    except Exception as error:
        raise ValueError(f"backbone: the weights of {HF}{path} could not be loaded ({one_line(error)})") from None
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ValueError(f"backbone: {HF}{path} has no weights for {len(missing)} tensors, {missing[0]} first")
    return adopt_clip(model.to(device), quick_gelu=quick_gelu, name=f"{HF}{path}")


def _tokenizer(host: Host, model: nn.Module, given: Any, name: str) -> Callable[[Any], Tensor]:
    """Returns the tokenizer of a model; see :func:`adopt_clip`."""
    try:
        length = int(host.describe_text(model)["context_length"])
    except TypeError:
        length = 77
    given = getattr(model, "tokenizer", None) if given is None else given
    if given is None and name.startswith(HF):
        from transformers import AutoTokenizer

        path = name.removeprefix(HF)
        try:
            given = AutoTokenizer.from_pretrained(path)
        except Exception as error:  # of the hub and of the disk
            raise ValueError(f"backbone: transformers finds no tokenizer at {path!r} ({one_line(error)})") from None
    if given is not None:
        return PaddedTokenizer(given, length) if hasattr(given, "pad_token_id") else given
    words: Any = host.token_embedding(model).weight
    if len(words) != _BPE_WORDS:
        raise ValueError(
            f"backbone: the tokenizer of {name} with {len(words)} words is not known; expected "
            "backbone=(model, tokenizer), or embeddings instead of texts"
        )
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer(context_length=length)
