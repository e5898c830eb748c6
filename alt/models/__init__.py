"""Video models on CLIP image towers with token merging: ALT and what it is compared with.

Names are resolved on first use: ``import alt.models`` loads no open_clip.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .alt import AltModel
    from .config import AltConfig
    from .entity_alignment import EntityAlignment
    from .region_encoder import RegionEncoder, Tokens
    from .registry import create_model, list_models
    from .video_adapter import VideoAdapter
    from .video_model import VideoModel, VideoOutput

_HOME = {
    "AltConfig": "config",
    "AltModel": "alt",
    "EntityAlignment": "entity_alignment",
    "RegionEncoder": "region_encoder",
    "Tokens": "region_encoder",
    "VideoAdapter": "video_adapter",
    "VideoModel": "video_model",
    "VideoOutput": "video_model",
    "create_model": "registry",
    "list_models": "registry",
}

__all__ = [
    "AltConfig",
    "AltModel",
    "EntityAlignment",
    "RegionEncoder",
    "Tokens",
    "VideoAdapter",
    "VideoModel",
    "VideoOutput",
    "create_model",
    "list_models",
]


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
