"""Launch configurations as data: ``configs/<stem>.json``, looked up by the nearest size.

A file holds lists of entries: for ``"default"``, for an architecture, and for every GPU it was tuned on::

    {"default": [{"when": {"channels": 1024}, "use": {"R": 4, "num_warps": 4}}, ...],
     "sm_90": [...], "NVIDIA H200, sm_90": [...]}

Keys (``when``) are sizes that are constant across blocks (channels, head dimension, entities), or a bucket of the
token count; the count itself would recompile per block. Lookup order: this GPU, its architecture for sizes that the
GPU does not list, the default for sizes that neither lists. Among these the entry nearest in log size is taken.
Nothing is measured at run time. The default is conservative: it fits sm_80 and later data-centre GPUs. Entries of an
architecture were chosen on paper, from the compiled code, or measured on one of its GPUs
(``benchmarks/findings/gpu-first-run.md``). ``python -m tools.aot`` compiles every entry for its targets.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

CONFIGS = Path(__file__).parent / "configs"

_forced: dict[str, dict[str, Any]] = {}  # configurations set by force_config, by stem


@cache
def load(stem: str) -> dict[str, list[dict[str, Any]]]:
    """Returns the file of an op, read and checked once, so that a broken entry is named here and not by the compiler.

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
        if device != "default" and not re.fullmatch(r"(.+, )?sm_\d+", device):
            raise ValueError(f"{path.name}: expected 'default', 'sm_90' or 'GPU NAME, sm_90', got {device!r}")
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
    """Returns the driver's name of the GPU and its architecture, ``"NVIDIA H200, sm_90"``; "default" without a GPU."""
    if not torch.cuda.is_available():
        return "default"
    return f"{torch.cuda.get_device_name()}, {architecture(torch.cuda.get_device_capability())}"


def architecture(capability: tuple[int, int]) -> str:
    """``(9, 0)`` -> ``"sm_90"``."""
    return f"sm_{capability[0]}{capability[1]}"


def nearest(entries: list[dict[str, Any]], sizes: dict[str, int]) -> dict[str, Any]:
    """Returns the ``use`` of the entry nearest to ``sizes``; the first among equals."""

    def distance(entry: dict[str, Any]) -> float:
        return sum(abs(math.log(max(sizes[name], 1) / max(size, 1))) for name, size in entry["when"].items())

    return min(entries, key=distance)["use"]


def config(stem: str, **sizes: int) -> Mapping[str, Any]:
    """Returns the configuration of op ``stem`` at these sizes on this GPU: tuned for it, else the default's.

    All launches share it, so it cannot be changed.

    Raises:
        ValueError: no such file, or ``sizes`` are not those that its entries name.
    """
    return _forced.get(stem) or _config(stem, device_name(), tuple(sizes.items()))


def is_forced(stem: str) -> bool:
    """True inside :func:`force_config` of this op: what was derived from another configuration does not hold."""
    return stem in _forced


@contextlib.contextmanager
def force_config(stem: str, use: dict[str, Any]) -> Iterator[None]:
    """Makes launches of op ``stem`` inside take ``use``, whatever their sizes; for the search of ``tools/tune.py``."""
    _forced[stem] = use
    try:
        yield
    finally:
        del _forced[stem]


@cache
def _config(stem: str, device: str, sizes: tuple[tuple[str, int], ...]) -> Mapping[str, Any]:
    devices, wanted = load(stem), dict(sizes)
    named = devices["default"][0]["when"].keys()
    if wanted.keys() != named:
        raise ValueError(f"sizes: expected {sorted(named)} for {stem!r}, got {sorted(wanted)}")
    return MappingProxyType(nearest(list_entries(devices, device), wanted))


def list_entries(devices: dict[str, list[dict[str, Any]]], device: str) -> list[dict[str, Any]]:
    """Returns the entries of a GPU: its own, its architecture's of other sizes, the default's of the rest."""
    found: list[dict[str, Any]] = []
    for key in dict.fromkeys((device, device.rpartition(", ")[2], "default")):
        known = [entry["when"] for entry in found]
        found += [entry for entry in devices.get(key, []) if entry["when"] not in known]
    return found
