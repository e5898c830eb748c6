"""Throughput and peak memory of whole models, measured together so that they can be compared.

Throughput: every model runs once per round in a random order, and the median time of a model counts. Peak memory on a
CPU is the high-water mark (VmHWM) of a fresh process. Its allocator returns every large buffer at once, so a call's
peak does not depend on earlier calls. On a GPU it is the caching allocator's peak.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

__all__ = ["clip_of", "peak_beyond_now", "peak_memory", "throughput"]

Key = TypeVar("Key", bound=Hashable)

_MIN_ROUNDS, _MAX_ROUNDS = 5, 50
_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


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
    started = time.perf_counter()
    frames = {key: run() for key, run in runs.items()}  # first calls pay for one-time setup
    rounds = int(seconds / max(time.perf_counter() - started, 1e-6))
    rounds = min(max(rounds, _MIN_ROUNDS), _MAX_ROUNDS)
    order = list(runs)
    shuffle = random.Random(0).shuffle
    times: dict[Key, list[float]] = {key: [] for key in runs}
    for _ in range(rounds):
        shuffle(order)
        for key in order:
            _synchronise(place)
            begin = time.perf_counter()
            runs[key]()
            _synchronise(place)
            times[key].append(time.perf_counter() - begin)
    return {key: frames[key] / statistics.median(times[key]) for key in runs}


def peak_memory(
    models: Mapping[Key, nn.Module], *, clips: int = 8, device: torch.device | str = "cpu"
) -> dict[Key, int | None]:
    """Measures the peak bytes of one forward pass beyond those held before it; None if the system reports none."""
    place = torch.device(device)
    if place.type == "cuda":
        found: dict[Key, int | None] = {}
        for key, model in models.items():
            run = _runner(model, clips, place)
            run()
            found[key] = peak_beyond_now(run, place)
        return found
    if not (_CLEAR.exists() and _STATUS.exists()):
        return dict.fromkeys(models)
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for number, model in enumerate(models.values()):
            path = Path(folder) / f"{number}.pt"
            torch.save(model, path)
            paths.append(str(path))
        command = [sys.executable, "-m", "alt.evaluate.measure", str(clips), *paths]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise RuntimeError(f"peak memory could not be measured: {last}")
    return dict(zip(models, json.loads(done.stdout.splitlines()[-1]), strict=True))


def peak_beyond_now(run: Callable[[], object], device: torch.device) -> int:
    """Measures the peak bytes of ``run()`` beyond those held before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    _CLEAR.write_text("5\n")  # 5: reset the high-water mark to the current size
    before = _resident("VmRSS")
    run()
    return max(_resident("VmHWM") - before, 0)


def _runner(model: nn.Module, clips: int, device: torch.device) -> Callable[[], int]:
    model = model.to(device).eval()
    x = clip_of(model, clips, device)

    def run() -> int:
        with torch.inference_mode():
            model(x)
        return int(x.shape[0] * x.shape[1])

    return run


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _resident(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"{_STATUS} has no field {field}")


def hand_memory_back() -> None:
    """Tells glibc's malloc to map every buffer of 64 KiB or more separately and to return free memory at once."""
    trim_threshold, mmap_threshold, mmap_max = -1, -3, -4  # malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(mmap_threshold, 64 * 1024)
        mallopt(trim_threshold, 0)
        mallopt(mmap_max, 1 << 20)


def _child(clips: int, paths: list[str]) -> None:
    hand_memory_back()
    torch.set_num_threads(1)
    found = []
    for path in paths:
        model = torch.load(path, weights_only=False)  # our own file, written a moment ago
        _runner(model, 1, torch.device("cpu"))()
        found.append(peak_beyond_now(_runner(model, clips, torch.device("cpu")), torch.device("cpu")))
    print(json.dumps(found))


if __name__ == "__main__":
    _child(int(sys.argv[1]), sys.argv[2:])
