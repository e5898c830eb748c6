"""Throughput and peak memory of whole models, measured together so that they can be compared.

Throughput: every model runs once per round in a random order, and the median time of a model counts. Peak memory on a
CPU is the high-water mark (VmHWM) of a fresh process. Its allocator returns every large buffer at once, so a call's
peak does not depend on earlier calls. On a GPU it is the caching allocator's peak.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from alt.measure import (
    call_fresh_process,
    can_measure_peak,
    interleave,
    measure_peak,
    return_freed_memory,
    time_call,
)

__all__ = ["clip_of", "peak_memory", "throughput"]

Key = TypeVar("Key", bound=Hashable)

_MIN_ROUNDS, _MAX_ROUNDS = 5, 50


def clip_of(model: nn.Module, clips: int, device: torch.device | str, seed: int = 0) -> Tensor:
    """Returns noise in the shape of a batch of clips for ``model``: ``[clips, T, 3, H, W]``."""
    height, width = model.backbone.image_size  # type: ignore[union-attr,misc]
    frames = int(model.config.frames)  # type: ignore[union-attr,arg-type]
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(clips, frames, 3, height, width, generator=generator).to(device)


def throughput(
    models: Mapping[Key, nn.Module],
    *,
    clips: int = 8,
    device: torch.device | str = "cpu",
    seconds: float = 20.0,
) -> dict[Key, float]:
    """Measures frames per second of every model in evaluation mode, the median over interleaved rounds."""
    place = torch.device(device)
    runs = {key: _runner(model, clips, place) for key, model in models.items()}
    frames = {key: run() for key, run in runs.items()}  # first calls pay for one-time setup
    samples = interleave(
        {key: partial(time_call, run, place) for key, run in runs.items()},
        rounds=_MAX_ROUNDS,
        min_rounds=_MIN_ROUNDS,
        seconds=seconds,
        warm_up=0,
    )
    return {key: frames[key] / statistics.median(s.seconds for s in found) for key, found in samples.items()}


def peak_memory(
    models: Mapping[Key, nn.Module], *, clips: int = 8, device: torch.device | str = "cpu"
) -> dict[Key, int | None]:
    """Measures the peak bytes of one forward pass beyond those held before it; None if the system reports none."""
    place = torch.device(device)
    if not can_measure_peak(place):
        return dict.fromkeys(models)
    if place.type == "cuda":
        found: dict[Key, int | None] = {}
        for key, model in models.items():
            run = _runner(model, clips, place)
            run()
            found[key] = measure_peak(run, place).bytes
        return found
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for number, model in enumerate(models.values()):
            path = Path(folder) / f"{number}.pt"
            torch.save(model, path)
            paths.append(str(path))
        peaks = call_fresh_process(["-m", "alt.evaluate.speed_and_memory", str(clips), *paths])
    return dict(zip(models, peaks, strict=True))


def _runner(model: nn.Module, clips: int, device: torch.device) -> Callable[[], int]:
    model = model.to(device).eval()
    x = clip_of(model, clips, device)

    def run() -> int:
        with torch.inference_mode():
            model(x)
        return int(x.shape[0] * x.shape[1])

    return run


def _child(clips: int, paths: list[str]) -> None:
    return_freed_memory()
    torch.set_num_threads(1)
    found = []
    for path in paths:
        model = torch.load(path, weights_only=False)  # our own file, written a moment ago
        _runner(model, 1, torch.device("cpu"))()
        found.append(measure_peak(_runner(model, clips, torch.device("cpu"))).bytes)
    print(json.dumps(found))


if __name__ == "__main__":
    _child(int(sys.argv[1]), sys.argv[2:])
