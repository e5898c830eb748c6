"""The machine of a measurement: processor, vector instructions, threads, versions, backends, commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import alt_kernels

__all__ = ["describe_machine", "find_commit", "is_busy", "machine_slug", "query_driver"]

ROOT = Path(__file__).resolve().parents[2]
#: Distributions whose version may explain a result. torch, Triton and our own are asked themselves.
DISTRIBUTIONS = ("numpy", "lightning", "open_clip_torch", "timm", "transformers", "onnxruntime", "openvino")
#: Files that a commit must hold for "modified" to be false; results and texts do not count.
CODE = ("alt_kernels", "alt", "csrc", "benchmarks/*.py", "setup.py")


def describe_machine(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Returns what a reader needs to judge a result: a flat record for JSON, without host name, user or path.

    ``load`` is the average number of processes that wanted to run during the last minute, None where the system does
    not say. ``commit`` is "unknown" and ``modified`` None where the package does not lie in its checkout. A
    distribution that is not installed has the version None. With a CUDA ``device`` the GPU, its capability, CUDA and
    the driver are named as well.
    """
    device = torch.device(device)
    cpp = alt_kernels.backends()["cpp"]
    record: dict[str, Any] = {
        "device": device.type,
        "cpu": cpu_name(),
        "cores": _cores(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "bf16_instructions": bool(torch.cpu._is_avx512_bf16_supported()) if platform.machine() == "x86_64" else None,
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "torch": torch.__version__,
        "blas": "MKL" if torch.backends.mkl.is_available() else "other",
        "python": platform.python_version(),
        "alt_kernels": alt_kernels.__version__,
        "triton": _version("triton") or _version("pytorch-triton"),
        **{name: _version(name) for name in DISTRIBUTIONS},
        "compiled_kernels": cpp.available,
        "system": f"{platform.system()} {platform.machine()}",
        **find_commit(),
    }
    if device.type == "cuda":
        record |= {
            "gpu": torch.cuda.get_device_name(device),
            "capability": ".".join(map(str, torch.cuda.get_device_capability(device))),
            "cuda": torch.version.cuda,
            "driver": (query_driver(["driver_version"]) or ["unknown"])[0],
        }
    return record


def machine_slug(record: dict[str, Any]) -> str:
    """Returns a machine's name for a folder: ``cpu-amd-epyc-avx512``, ``nvidia-h200``."""
    text = record["gpu"] if "gpu" in record else f"cpu {record['cpu']} {record['isa']}"
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def is_busy() -> bool:
    """Returns True if more processes than cores wanted to run during the last minute, so that times are rough."""
    try:
        return os.getloadavg()[0] > (os.cpu_count() or 1) + 0.5
    except (AttributeError, OSError):  # a system that does not say
        return False


def cpu_name() -> str:
    """Returns the processor's model name without trademarks and clock."""
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return re.sub(r"\((R|TM)\)|\s+(CPU|Processor)\b.*|\s+@.*", "", line.split(":", 1)[1]).strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def find_commit(root: Path = ROOT) -> dict[str, Any]:
    """Returns the ``commit`` of the checkout at ``root`` and whether tracked code is ``modified``.

    A package installed below somebody else's repository has none: this file must be tracked there.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "alt/measure/machine.py")
        return {
            "commit": git("rev-parse", "--short=10", "HEAD"),
            "modified": bool(git("status", "--porcelain", "--untracked-files=no", "--", *CODE)),
        }
    except (OSError, subprocess.SubprocessError):
        return {"commit": "unknown", "modified": None}


def query_driver(fields: Sequence[str]) -> list[str]:
    """Returns what ``nvidia-smi`` says of the first GPU for each of its query ``fields``; empty where it is silent."""
    try:
        query = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
        out = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout
        return out.splitlines()[0].split(", ")
    except (OSError, subprocess.SubprocessError, IndexError):
        return []


def _cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
