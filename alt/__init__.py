"""Vision transformers with token merging: patching of CLIP models and what a forward pass costs.

    handle = alt.patch_clip(model, r=8)   # every block of the image tower now merges 8 tokens
    handle.remove()                       # bit for bit the model of before

Names are resolved on first use, so ``import alt`` needs neither open_clip nor a compiled library.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .cost import CostReport, count_macs
    from .models import AltConfig, VideoModel, create_model, list_models
    from .patch import PatchHandle, get_handle, patch_clip, unpatch
    from .train import TrainConfig, fit, load_config

_HOME = {
    "TrainConfig": "alt.train",
    "AltConfig": "alt.models",
    "CostReport": "alt.cost",
    "PatchHandle": "alt.patch",
    "VideoModel": "alt.models",
    "count_macs": "alt.cost",
    "create_model": "alt.models",
    "fit": "alt.train",
    "get_handle": "alt.patch",
    "list_models": "alt.models",
    "load_config": "alt.train",
    "patch_clip": "alt.patch",
    "unpatch": "alt.patch",
}

__all__ = [
    "AltConfig",
    "CostReport",
    "PatchHandle",
    "TrainConfig",
    "VideoModel",
    "count_macs",
    "create_model",
    "fit",
    "get_handle",
    "list_models",
    "load_config",
    "patch_clip",
    "unpatch",
]


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
