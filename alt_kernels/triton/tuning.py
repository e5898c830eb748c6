"""Launch configurations as data: ``configs/<stem>.json``, looked up by the nearest size.

A file holds, for every GPU it was tuned on and for ``"default"``, a list of entries::

    {"default": [{"when": {"channels": 768}, "use": {"R": 4, "num_warps": 4}}, ...], "NVIDIA H200": [...]}

``when`` are sizes that do not change from block to block (channels, head dimension, entities): a token count in a
key would tune or compile anew in every block. The nearest entry is the one whose sizes differ least in their
logarithms. No entry is measured at run time. The default is conservative: it fits every GPU that Triton supports.
"""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import torch

CONFIGS = Path(__file__).parent / "configs"


@cache
def load(stem: str) -> dict[str, list[dict[str, Any]]]:
    """The file of an op, read once."""
    path = CONFIGS / f"{stem}.json"
    entries = json.loads(path.read_text())
    if not entries.get("default"):
        raise ValueError(f"{path.name}: expected at least one entry under 'default'")
    return entries


@cache
def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "default"


def nearest(entries: list[dict[str, Any]], sizes: dict[str, int]) -> dict[str, Any]:
    """The ``use`` of the entry nearest to ``sizes``; the first among equals."""

    def distance(entry: dict[str, Any]) -> float:
        when = entry["when"]
        return sum(abs(math.log(max(sizes[name], 1)) - math.log(max(when[name], 1))) for name in sizes if name in when)

    return min(entries, key=distance)["use"]


def config(stem: str, **sizes: int) -> dict[str, Any]:
    """The configuration of op ``stem`` at these sizes on this GPU, or the default's."""
    return _config(stem, device_name(), tuple(sorted(sizes.items())))


@cache
def _config(stem: str, device: str, sizes: tuple[tuple[str, int], ...]) -> dict[str, Any]:
    entries = load(stem)
    return nearest(entries.get(device, entries["default"]), dict(sizes))
