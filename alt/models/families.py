"""Names of the video models, each a family and a backbone. Builders load on first use; torch is not imported here."""

from __future__ import annotations

import fnmatch
import importlib
from typing import Any, NamedTuple

from .config import AltConfig, BaselineConfig, FrameIntegrationConfig, MaxiConfig, VideoConfig, ViFiConfig, XClipConfig

__all__ = ["BACKBONES", "FAMILIES", "Family", "list_models", "load_family", "parse_name"]


class Family(NamedTuple):
    """home: "module:class" of a VideoModel, called ``(config, visual, logit_scale, text)``; config: the type of its
    first argument."""

    home: str
    config: type[VideoConfig]


FAMILIES = {
    "alt": Family("alt.models.alt:AltModel", AltConfig),
    "clip-mean": Family("alt.models.baselines:ClipMean", BaselineConfig),
    "clip-one": Family("alt.models.baselines:ClipOne", BaselineConfig),
    "clip-joint": Family("alt.models.baselines:ClipJoint", BaselineConfig),
    "vifi": Family("alt.models.baselines:ViFiClip", ViFiConfig),
    "maxi": Family("alt.models.maxi:Maxi", MaxiConfig),
    "xclip": Family("alt.models.xclip:XClip", XClipConfig),
    "mit": Family("alt.models.frame_integration:FrameIntegrationModel", FrameIntegrationConfig),
}

BACKBONES: dict[str, tuple[str, int, int, int]] = {
    "b32": ("ViT-B-32", 8, 2, 4),
    "b16": ("ViT-B-16", 8, 8, 4),
    "l14": ("ViT-L-14", 8, 8, 6),
    "l14-336": ("ViT-L-14-336", 16, 8, 6),
    "mini": ("mini", 4, 2, 2),
}
"""suffix -> (backbone, default frames T, and for ALT default tokens r merged per block and adapter blocks M)."""


def list_models(pattern: str = "*") -> list[str]:
    """Returns the names that :func:`alt.create_model` knows.

    Args:
        pattern: a glob for the names: "alt-*", "*-b16", "clip-*-l14".
    """
    names = [f"{family}-{suffix}" for family in FAMILIES for suffix in BACKBONES]
    return [name for name in names if fnmatch.fnmatchcase(name, pattern)]


def parse_name(name: str) -> tuple[str, str]:
    """Splits ``"alt-b16"`` into ``("alt", "b16")``. A family alone is that of B/16.

    Raises:
        ValueError: the name is not in :func:`list_models`.
    """
    if isinstance(name, str):
        if name in FAMILIES:
            return name, "b16"
        for family in FAMILIES:
            suffix = name.removeprefix(f"{family}-")
            if suffix != name and suffix in BACKBONES:
                return family, suffix
    raise ValueError(f"name: expected one of {', '.join(list_models())}, got {name!r}")


def load_family(family: str) -> Any:
    """Returns the model class of a family."""
    module, _, attribute = FAMILIES[family].home.partition(":")
    return getattr(importlib.import_module(module), attribute)
