"""The image tower of the demonstration: open_clip's, with pretrained or with random weights."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from alt.data.pixels import denormalise
from alt.data.seeds import seeded
from alt.errors import UsageError, UserError
from alt.hosts import find_host, find_tower
from alt.models.clip import build_clip

__all__ = ["Tower", "load_tower"]

_QUICK = "-quickgelu"


class Tower(NamedTuple):
    """An image tower with its preprocessing.

    model: its name in open_clip. visual: the module, in evaluation mode. preprocess: photograph -> [3, H, W] float32.
    weights: their origin, in words.
    """

    model: str
    visual: nn.Module
    preprocess: Callable[[Image.Image], Tensor]
    weights: str

    def picture(self, x: Tensor) -> NDArray[np.uint8]:
        """Undoes the normalisation of ``preprocess``: [3, H, W] -> uint8 [H, W, 3], as the tower sees it."""
        pixels = denormalise(x, *find_host(self.visual).mean_std(self.visual))
        return pixels.permute(1, 2, 0).contiguous().numpy()

    def grid(self) -> tuple[int, int]:
        """Returns the number of patches down and across."""
        return find_host(self.visual).grid(self.visual)

    def num_protected(self) -> int:
        """Returns the number of tokens before those of the patches."""
        return find_host(self.visual).num_protected(self.visual)


def load_tower(model: str, pretrained: str | None, seed: int) -> Tower:
    """Builds the tower ``model`` with the weights of tag ``pretrained``, or random ones from ``seed``."""
    try:
        import open_clip
        from open_clip.transform import PreprocessCfg, image_transform_v2
    except ModuleNotFoundError as error:
        raise UserError(f"The demo needs {error.name}; install it with: pip install 'alt-kernels[models]'.") from None
    known = open_clip.list_models()
    if model not in known:
        near = [name for name in known if name.lower().replace("_", "-") == model.lower().replace("_", "-")]
        hint = f"did you mean '{near[0]}'?" if near else "open_clip.list_models() lists them, for example ViT-B-16."
        raise UsageError(f"--model: open_clip has no model '{model}'; {hint}")
    if pretrained is not None:
        model = _model_of_tag(open_clip, model, pretrained)
    try:
        with seeded(seed):
            clip = build_clip(model, pretrained).clip
    except ValueError as error:
        reason = str(error).partition(": ")[2]
        if pretrained is None:
            raise UserError(f"--model: {reason}.") from None
        raise UserError(f"--pretrained: {reason}; without --pretrained the demo runs on random weights.") from None
    visual: Any = find_tower(clip)[1].eval().requires_grad_(False)
    settings = PreprocessCfg(**visual.preprocess_cfg)
    weights = f"random, seed {seed}" if pretrained is None else f"pretrained, {pretrained}"
    return Tower(model, visual, image_transform_v2(settings, is_train=False), weights)


def _model_of_tag(open_clip: Any, model: str, tag: str) -> str:
    """Returns the variant of ``model`` (with or without QuickGELU) for which the weights ``tag`` were trained."""
    if os.path.isfile(tag):
        return model
    plain = model.removesuffix(_QUICK)
    tags = {
        name: open_clip.list_pretrained_tags_by_model(name)
        for name in (model, plain + _QUICK, plain)
        if name in open_clip.list_models()
    }
    # Weights trained with QuickGELU are listed under both names, those without it under the plain one only.
    fitting = [name for name in (plain + _QUICK, plain) if tag in tags.get(name, ())]
    if fitting:
        return fitting[0]
    listed = ", ".join(sorted(set().union(*tags.values()))) or "none"
    raise UsageError(
        f"--pretrained: open_clip has no weights '{tag}' for {plain} and no such file exists; it has {listed}."
    )
