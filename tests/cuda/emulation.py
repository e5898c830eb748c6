"""Builds csrc/cuda for the host, where every thread of a block is a fiber, with g++ alone."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from alt_kernels.library import CUDA_OPS

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "csrc" / "cuda"
HERE = Path(__file__).parent
TORCH = Path(torch.__file__).parent
#: On the machine of a GPU the compiler is another one, which may warn of more.
STRICT = ("-Werror",) if os.environ.get("ALT_KERNELS_TEST_DEVICE", "cpu") == "cpu" else ()
FLAGS = [
    *("-std=c++20", "-Wall", "-Wextra", *STRICT, "-Wno-clobbered", "-Wno-unknown-pragmas", "-fno-strict-aliasing"),
    *("-ffp-contract=off", "-DALT_HOST_EMULATION", "-DTORCH_TARGET_VERSION=0x020b000000000000"),
    *("-isystem", str(TORCH / "include"), "-isystem", str(TORCH / "include/torch/csrc/api/include"), f"-I{SOURCES}"),
]
NAMESPACE = "alt_kernels_emulated"


def compiler() -> str:
    found = shutil.which(os.environ.get("CXX", "g++"))
    if found is None:
        pytest.skip("no C++ compiler")
    return found


def built(name: str, *arguments: str) -> Path:
    """The compiler's output for these arguments, kept under build/ until a source or an argument changes."""
    digest = hashlib.sha256(" ".join((compiler(), torch.__version__, *FLAGS, *arguments)).encode())
    for path in sorted([*SOURCES.iterdir(), *HERE.glob("*.cpp"), SOURCES.parent / "common.h"]):
        digest.update(path.read_bytes())
    folder = ROOT / "build" / "emulation"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{digest.hexdigest()[:16]}-{name}"
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test processes want the same file
        if not target.exists():
            fresh = target.with_suffix(".part")
            command = [compiler(), *FLAGS, *arguments, "-o", str(fresh)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            for old in folder.glob(f"*-{name}"):
                old.unlink()
            fresh.rename(target)
    return target


@functools.cache
def library() -> ctypes.CDLL:
    """``torch.ops.alt_kernels_emulated``: the ops of csrc/cuda for CPU tensors; and the emulator's handles."""
    if not hasattr(torch.ops, NAMESPACE) or not hasattr(getattr(torch.ops, NAMESPACE), "bipartite_matching_cuda"):
        schemas = torch.library.Library(NAMESPACE, "DEF")
        library.schemas = schemas  # type: ignore[attr-defined]  # an unreferenced Library takes its ops along
        for op in CUDA_OPS.values():
            schemas.define(op.schema)
    sources = ["-x", "c++", *map(str, sorted(SOURCES.glob("*.cu"))), str(HERE / "emulated.cpp"), "-x", "none"]
    where = str(TORCH / "lib")
    link = ["-L", where, "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{where}"]
    path = built("kernels.so", "-O2", "-march=native", "-fPIC", "-shared", *sources, *link)
    torch.ops.load_library(str(path))
    handles = ctypes.CDLL(str(path))
    handles.alt_emulation_launches.restype = ctypes.c_int64
    return handles
