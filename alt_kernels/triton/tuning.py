"""Launch configurations as data: ``configs/<stem>.json``, looked up by the nearest size.

A file holds, for every GPU it was tuned on and for ``"default"``, a list of entries::

    {"default": [{"when": {"channels": 1024}, "use": {"R": 4, "num_warps": 4}}, ...], "NVIDIA H200": [...]}

``when`` are sizes that do not change from block to block (channels, head dimension, entities), or buckets of one that
does: a token count itself in a key would tune or compile anew in every block. The nearest entry is the one whose
sizes differ least in their logarithms, among those of the GPU and those of the default whose sizes the GPU does not
list; so a GPU lists only what was tuned on it. Nothing is measured at run time. The default is conservative: it fits
sm_80 and later data-centre GPUs, and ``python -m alt_kernels.triton.aot`` compiles it for them.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch

CONFIGS = Path(__file__).parent / "configs"

_forced: dict[str, dict[str, Any]] = {}  # what a search tries at the moment, by stem


@cache
def load(stem: str) -> dict[str, list[dict[str, Any]]]:
    """The file of an op, read and checked once: a broken entry is named here and not by the compiler.

    Raises:
        ValueError: no file, no default, or an entry whose fields are not those of the default's first.
    """
    path = CONFIGS / f"{stem}.json"
    if not path.is_file():
        raise ValueError(f"stem: expected one of {sorted(p.stem for p in CONFIGS.glob('*.json'))}, got {stem!r}")
    devices = json.loads(path.read_text())
    if not devices.get("default"):
        raise ValueError(f"{path.name}: expected at least one entry under 'default', got none")
    first = devices["default"][0]
    for device, entries in devices.items():
        if not entries:
            raise ValueError(f"{path.name}: expected at least one entry under {device!r}, got none")
        for entry in entries:
            for field in ("when", "use"):
                if entry[field].keys() != first[field].keys():
                    raise ValueError(
                        f"{path.name}: expected the fields {sorted(first[field])} in every {field!r},"
                        f" got {sorted(entry[field])} under {device!r}"
                    )
            if any(
                not isinstance(value, int) or value < 0 for value in (*entry["when"].values(), *entry["use"].values())
            ):
                raise ValueError(f"{path.name}: expected whole numbers >= 0 under {device!r}, got {entry}")
    return devices


@cache
def device_name() -> str:
    """The GPU's name as the driver gives it, ``"default"`` without a GPU."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "default"


def nearest(entries: list[dict[str, Any]], sizes: dict[str, int]) -> dict[str, Any]:
    """The ``use`` of the entry nearest to ``sizes``; the first among equals."""

    def distance(entry: dict[str, Any]) -> float:
        return sum(abs(math.log(max(sizes[name], 1) / max(size, 1))) for name, size in entry["when"].items())

    return min(entries, key=distance)["use"]


def config(stem: str, **sizes: int) -> dict[str, Any]:
    """The configuration of op ``stem`` at these sizes on this GPU: tuned for it, else the default's.

    Raises:
        ValueError: no such file, or ``sizes`` are not those that its entries name.
    """
    return dict(_forced.get(stem) or _config(stem, device_name(), tuple(sizes.items())))


@contextlib.contextmanager
def forced(stem: str, use: dict[str, Any]) -> Iterator[None]:
    """Launches of op ``stem`` inside take ``use``, whatever their sizes; for the search of :mod:`.tuner`."""
    _forced[stem] = use
    try:
        yield
    finally:
        del _forced[stem]


@cache
def _config(stem: str, device: str, sizes: tuple[tuple[str, int], ...]) -> dict[str, Any]:
    devices, wanted = load(stem), dict(sizes)
    named = devices["default"][0]["when"].keys()
    if wanted.keys() != named:
        raise ValueError(f"sizes: expected {sorted(named)} for {stem!r}, got {sorted(wanted)}")
    return nearest(listed(devices, device), wanted)


def listed(devices: dict[str, list[dict[str, Any]]], device: str) -> list[dict[str, Any]]:
    """The entries a GPU chooses from: its own, then the default's of other sizes."""
    own = devices.get(device, []) if device != "default" else []
    sizes = [entry["when"] for entry in own]
    return own + [entry for entry in devices["default"] if entry["when"] not in sizes]


def shipped(stem: str, **sizes: int) -> list[dict[str, Any]]:
    """What any GPU of the file would use at these sizes, each once, the default first; to compile ahead of time."""
    devices = load(stem)
    found: list[dict[str, Any]] = []
    for device in ("default", *sorted(devices.keys() - {"default"})):
        use = dict(_config(stem, device, tuple(sizes.items())))
        if use not in found:
            found.append(use)
    return found
