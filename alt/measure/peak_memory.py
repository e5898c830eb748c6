"""Peak memory of one call beyond what was held before it.

On a CPU: the kernel's high-water mark of the process's resident memory (VmHWM), reset just before the call, less the
resident size then. Pages count whoever asked for them. On a GPU: the caching allocator's peak less what it held.

A heap that keeps freed memory hides a peak: pages that are still resident are used again and never counted. So the
heap's free pages are given back before the mark is reset. What the call itself frees on its way may stay in the heap
or not, which depends on what the process did before. Where this matters, measure in a fresh process
(:func:`call_fresh_process`) that begins with :func:`return_freed_memory`.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

__all__ = [
    *("Peak", "call_fresh_process", "can_measure_peak", "keep_freed_memory", "measure_peak", "return_freed_memory"),
]

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_RESET_MARK = "5\n"  # to clear_refs: the high-water mark becomes the present size
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # malloc.h


class Peak(NamedTuple):
    """Bytes at the peak beyond those held before, and how they were measured, in words."""

    bytes: int
    how: str


def can_measure_peak(device: torch.device | str = "cpu") -> bool:
    """Returns True on a CUDA device, and on a CPU where the system has a high-water mark that can be reset (Linux)."""
    return torch.device(device).type == "cuda" or (_CLEAR.exists() and _STATUS.exists())


def measure_peak(run: Callable[[], object], device: torch.device | str = "cpu") -> Peak:
    """Calls ``run()`` once and returns the peak of memory beyond what was held before, its result included.

    Call it once before: libraries allocate their buffers in the first call.

    Args:
        run: what to measure; its result is dropped after the peak was read.
        device: where it allocates.

    Raises:
        RuntimeError: a CPU whose system has no high-water mark that can be reset.
    """
    device = torch.device(device)
    if not can_measure_peak(device):
        raise RuntimeError(f"device: expected one whose peak memory can be read, got {device} without {_CLEAR}")
    gc.collect()  # what is freed during the call must be its own
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = run()
        torch.cuda.synchronize(device)
        del result
        return Peak(torch.cuda.max_memory_allocated(device) - before, "CUDA caching allocator, peak less start")
    _trim_heap()
    _CLEAR.write_text(_RESET_MARK)
    before = _resident("VmRSS")
    result = run()
    peak = _resident("VmHWM")
    del result
    return Peak(max(peak - before, 0), "VmHWM, reset before the call, less VmRSS then")


def call_fresh_process(command: Sequence[str], *, threads: int = 1, timeout: float | None = None) -> Any:
    """Returns what a new Python process prints as its last line, read as JSON.

    Args:
        command: arguments of the interpreter: a script or ``-m`` and a module, then its own arguments.
        threads: OpenMP threads of the process.
        timeout: seconds after which it is killed.

    Raises:
        RuntimeError: the process failed; the message ends with its last line.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    whole = [sys.executable, *command]
    done = subprocess.run(whole, capture_output=True, text=True, env=environment, timeout=timeout, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise RuntimeError(f"{' '.join(command[:2])} ended with status {done.returncode}: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def return_freed_memory() -> bool:
    """Tells glibc's malloc to map every buffer from 64 KiB on by itself and to give free memory back at once.

    The peak of a call then depends neither on the calls before it nor on how its own buffers lie in the heap. Returns
    True if malloc took it.
    """
    mallopt = _libc("mallopt")
    settings = ((_MMAP_THRESHOLD, 64 * 1024), (_TRIM_THRESHOLD, 0), (_MMAP_MAX, 1 << 20))
    return mallopt is not None and all(mallopt(name, value) == 1 for name, value in settings)


def keep_freed_memory() -> str:
    """Tells glibc's malloc not to hand freed memory back, and returns in words what the allocator does now.

    By default large buffers go back to the system and are mapped again by the next call, or not, depending on what the
    process did before: the same call then takes 2 ms or 8. A function that allocates more is hit more, so that ratios
    depend on history. Kept memory makes them repeatable, and like those on a GPU, whose allocator always keeps it.
    """
    mallopt = _libc("mallopt")
    kept = mallopt is not None and mallopt(_TRIM_THRESHOLD, -1) == 1 and mallopt(_MMAP_MAX, 0) == 1
    return "freed memory is kept" if kept else "as the system does"


def _trim_heap() -> None:
    if (trim := _libc("malloc_trim")) is not None:
        trim(0)


def _libc(name: str) -> Callable[..., int] | None:
    try:
        return getattr(ctypes.CDLL(None), name, None)
    except (OSError, TypeError):  # a system without a C library of that form
        return None


def _resident(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"{_STATUS} has no field {field}")
