"""Launch configurations as data: ``configs/<stem>.json``, looked up by the nearest size.

A file holds lists of entries: for ``"default"``, for an architecture, and for every GPU it was tuned on::

    {"default": [{"when": {"channels": 1024}, "use": {"R": 4, "num_warps": 4}}, ...],
     "sm_90": [...], "NVIDIA H200, sm_90": [...]}

``when`` are sizes that do not change from block to block (channels, head dimension, entities), or buckets of one that
does: a token count itself in a key would tune or compile anew in every block. The nearest entry is the one whose
sizes differ least in their logarithms, among those of the GPU, those of its architecture that the GPU does not list,
and those of the default that neither lists; so each lists only where it differs. Nothing is measured at run time. The
default is conservative: it fits sm_80 and later data-centre GPUs. What an architecture lists was chosen on paper, from
the compiled code. ``python -m alt_kernels.triton.aot`` compiles every entry for the targets that may use it.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

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
    """The GPU's name as the driver gives it and its architecture, ``"NVIDIA H200, sm_90"``; "default" without a GPU."""
    if not torch.cuda.is_available():
        return "default"
    return f"{torch.cuda.get_device_name()}, {architecture(torch.cuda.get_device_capability())}"


def architecture(capability: tuple[int, int]) -> str:
    """``(9, 0)`` -> ``"sm_90"``."""
    return f"sm_{capability[0]}{capability[1]}"


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
    """The entries a GPU chooses from: its own, its architecture's of other sizes, the default's of yet others."""
    found: list[dict[str, Any]] = []
    for key in dict.fromkeys((device, device.rpartition(", ")[2], "default")):
        known = [entry["when"] for entry in found]
        found += [entry for entry in devices.get(key, []) if entry["when"] not in known]
    return found


class Shipped(NamedTuple):
    """A configuration of a file, and the targets (80 for sm_80) whose GPUs may use it; none: all."""

    use: dict[str, Any]
    targets: tuple[int, ...] = ()


def shipped(stem: str, **sizes: int) -> list[Shipped]:
    """Returns the configurations that the GPUs of the file use at these sizes, each once, the default first."""
    devices = load(stem)
    found: list[Shipped] = []
    for device in ("default", *sorted(devices.keys() - {"default"})):
        use = dict(_config(stem, device, tuple(sizes.items())))
        targets = (int(device.rpartition("sm_")[2]),) if device != "default" else ()
        if not any(use == other.use and other.targets in ((), targets) for other in found):
            found.append(Shipped(use, targets))
    return found
