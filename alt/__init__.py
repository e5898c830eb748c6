"""Vision transformers with token merging: patching of CLIP models and what a forward pass costs.

    handle = alt.patch_clip(model, r=8)   # every block of the image tower now merges 8 tokens
    handle.remove()                       # bit for bit the model of before

Names are resolved on first use, so ``import alt`` needs neither open_clip nor a compiled library.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .corpus import Corpus
    from .cost import CostReport, count_macs
    from .models import (
        AltConfig,
        TextEncoder,
        VideoModel,
        create_model,
        create_text_encoder,
        list_models,
        load_model,
        save_model,
    )
    from .patch import PatchHandle, get_handle, patch_clip, unpatch
    from .train import TrainConfig, fit, load_config

_HOME = {
    "TrainConfig": "alt.train",
    "AltConfig": "alt.models",
    "Corpus": "alt.corpus",
    "CostReport": "alt.cost",
    "PatchHandle": "alt.patch",
    "TextEncoder": "alt.models",
    "VideoModel": "alt.models",
    "count_macs": "alt.cost",
    "create_model": "alt.models",
    "create_text_encoder": "alt.models",
    "fit": "alt.train",
    "get_handle": "alt.patch",
    "list_models": "alt.models",
    "load_config": "alt.train",
    "load_model": "alt.models",
    "patch_clip": "alt.patch",
    "save_model": "alt.models",
    "unpatch": "alt.patch",
}

__all__ = [
    "AltConfig",
    "Corpus",
    "CostReport",
    "PatchHandle",
    "TextEncoder",
    "TrainConfig",
    "VideoModel",
    "count_macs",
    "create_model",
    "create_text_encoder",
    "fit",
    "get_handle",
    "list_models",
    "load_config",
    "load_model",
    "patch_clip",
    "save_model",
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
