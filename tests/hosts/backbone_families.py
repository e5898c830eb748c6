"""Backbones of transformers: models that return maps of features for dense tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import transformers as hf
from torch import Tensor

from .families import MLP, SMALL, TRANSFORMERS, Family, dinov2_config, layer_norm, registers_config
from .rotary_families import ROTARY


def backbone(of: Family, make: Callable[[], Any], norm: str = "layernorm") -> Family:
    """The backbone of a family, which returns the patches of its last layer, normed, as a map; here ``[B, C, n]``.

    transformers leaves local functions as hooks in every backbone, which do not pickle.
    """

    def finish(model: Any, grid: Tensor) -> list[Tensor]:
        return [layer_norm(getattr(model, norm))(grid)[:, of.protected :].transpose(1, 2)]

    return replace(
        of, make=make, run=lambda m, x: [found.flatten(2) for found in m(x).feature_maps], finish=finish, pickles=False
    )


BACKBONES: dict[str, Family] = {
    "Dinov2Backbone": backbone(TRANSFORMERS["Dinov2Model"], lambda: hf.Dinov2Backbone(dinov2_config())),
    "Dinov2WithRegistersBackbone": backbone(
        TRANSFORMERS["Dinov2WithRegistersModel"], lambda: hf.Dinov2WithRegistersBackbone(registers_config())
    ),
    "DINOv3ViTBackbone": backbone(
        ROTARY["DINOv3ViTModel"],
        lambda: hf.DINOv3ViTBackbone(
            hf.DINOv3ViTConfig(**SMALL, **MLP, layerscale_value=0.5, num_register_tokens=4, drop_path_rate=0.3)
        ),
        "norm",
    ),
}
