"""Video models on CLIP image towers with token merging: ALT and what it is compared with.

Names are resolved on first use: ``import alt.models`` loads no open_clip.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .alt import AltModel
    from .baselines import ClipJoint, ClipMean, ClipOne
    from .config import AltConfig
    from .entity_alignment import EntityAlignment
    from .frame_integration import FrameIntegration, FrameIntegrationModel
    from .prompts import LearnedPrompts
    from .region_encoder import RegionEncoder, Tokens
    from .registry import create_model, create_text_encoder, list_models
    from .strategy import Strategy, apply_strategy
    from .text import TextEncoder
    from .video_adapter import VideoAdapter
    from .video_model import VideoModel, VideoOutput
    from .weights import load_backbone, load_model, load_weights, save_model

_HOME = {
    "AltConfig": "config",
    "AltModel": "alt",
    "ClipJoint": "baselines",
    "ClipMean": "baselines",
    "ClipOne": "baselines",
    "EntityAlignment": "entity_alignment",
    "FrameIntegration": "frame_integration",
    "FrameIntegrationModel": "frame_integration",
    "LearnedPrompts": "prompts",
    "RegionEncoder": "region_encoder",
    "Strategy": "strategy",
    "TextEncoder": "text",
    "Tokens": "region_encoder",
    "VideoAdapter": "video_adapter",
    "VideoModel": "video_model",
    "VideoOutput": "video_model",
    "apply_strategy": "strategy",
    "create_model": "registry",
    "create_text_encoder": "registry",
    "list_models": "registry",
    "load_backbone": "weights",
    "load_model": "weights",
    "load_weights": "weights",
    "save_model": "weights",
}

__all__ = [
    "AltConfig",
    "AltModel",
    "ClipJoint",
    "ClipMean",
    "ClipOne",
    "EntityAlignment",
    "FrameIntegration",
    "FrameIntegrationModel",
    "LearnedPrompts",
    "RegionEncoder",
    "Strategy",
    "TextEncoder",
    "Tokens",
    "VideoAdapter",
    "VideoModel",
    "VideoOutput",
    "apply_strategy",
    "create_model",
    "create_text_encoder",
    "list_models",
    "load_backbone",
    "load_model",
    "load_weights",
    "save_model",
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
