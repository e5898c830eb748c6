"""Describes the machine of a measurement: processor, vector instructions, threads, versions, commit, GPU state."""

from __future__ import annotations

import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent


def describe(device: torch.device) -> dict[str, Any]:
    """Returns the facts needed to judge a time, without host name, user or path."""
    import alt_kernels

    compiled = alt_kernels.backends()["cpp"]
    facts: dict[str, Any] = {
        "device": device.type,
        "cpu": cpu_name(),
        "cores": _cores(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "bf16_instructions": bool(torch.cpu._is_avx512_bf16_supported()) if platform.machine() == "x86_64" else None,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "blas": "MKL" if torch.backends.mkl.is_available() else "other",
        "python": platform.python_version(),
        "alt_kernels": alt_kernels.__version__,
        "compiled_kernels": compiled.available,
        "system": f"{platform.system()} {platform.machine()}",
        **commit(),
    }
    if device.type == "cuda":
        import triton

        facts |= {
            "gpu": torch.cuda.get_device_name(device),
            "capability": ".".join(map(str, torch.cuda.get_device_capability(device))),
            "cuda": torch.version.cuda,
            "triton": triton.__version__,
            "driver": _driver(),
        }
    return facts


def slug(facts: dict[str, Any]) -> str:
    """Returns the folder name of the results: ``cpu-amd-epyc-avx512``, ``nvidia-h200``."""
    text = facts["gpu"] if "gpu" in facts else f"cpu {facts['cpu']} {facts['isa']}"
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return re.sub(r"\((R|TM)\)|\s+(CPU|Processor)\b.*|\s+@.*", "", line.split(":", 1)[1]).strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def commit() -> dict[str, Any]:
    """Returns the commit of this checkout, and whether tracked files other than results and texts differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True, timeout=30
        ).stdout.strip()

    try:
        code = ("alt_kernels", "alt", "csrc", "benchmarks/*.py", "setup.py")
        return {
            "commit": git("rev-parse", "--short=10", "HEAD"),
            "modified": bool(git("status", "--porcelain", "--untracked-files=no", "--", *code)),
        }
    except (OSError, subprocess.SubprocessError):
        return {"commit": "unknown", "modified": None}


def _cores() -> int | None:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _driver() -> str:
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


def gpu_state(device: torch.device) -> dict[str, str]:
    """Returns clocks, power and temperature of the GPU now, as the driver prints them; empty without a GPU."""
    if device.type != "cuda":
        return {}
    fields = ("clocks.sm", "clocks.mem", "clocks.max.sm", "power.draw", "power.limit", "temperature.gpu", "pstate")
    try:
        query = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
        line = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return {}
    return dict(zip(fields, line.split(", "), strict=False))
