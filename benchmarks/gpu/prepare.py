"""Before anything runs: wheels that were brought along, and the compiled library, built in place for this GPU."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from .processes import OUT_OF_TIME, finish

ROOT = Path(__file__).resolve().parents[2]


def install_wheels(folder: str) -> str:
    """Unpack a folder of wheels for this process and its children; nothing is fetched, nothing installed is touched."""
    wheels = sorted(Path(folder).glob("*.whl"))
    if not wheels:
        raise ValueError(f"WHEELS: expected a folder with *.whl files, got {folder!r}")
    target = tempfile.mkdtemp(prefix="alt-wheels-")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile"]
    subprocess.run([*command, "--target", target, *map(str, wheels)], check=True)
    sys.path.append(target)  # last: what the machine has goes first
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), target]))
    return target


def cuda_home() -> str | None:
    """The toolkit: torch may take for it a wrapper script on the PATH, beside which there is no library."""
    if os.environ.get("CUDA_HOME"):
        return os.environ["CUDA_HOME"]
    nvcc = shutil.which("nvcc")
    found = [Path("/usr/local/cuda"), *([Path(nvcc).resolve().parents[1]] if nvcc else [])]
    return next((str(p) for p in found if (p / "bin" / "nvcc").exists()), None)


def build(timeout: float) -> dict[str, Any]:
    """``setup.py build_ext --inplace`` for the architecture of this GPU; without it the Triton kernels still run."""
    import torch

    environment = dict(os.environ)
    if home := cuda_home():
        environment["CUDA_HOME"] = home
    if torch.cuda.is_available():
        environment["TORCH_CUDA_ARCH_LIST"] = ".".join(map(str, torch.cuda.get_device_capability()))
    started = time.monotonic()
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    status, text = finish(command, timeout, environment=environment)
    if status == OUT_OF_TIME:
        text += f"\nerror: not built within {timeout:.0f} s"
    libraries = sorted(path.name for path in (ROOT / "alt_kernels").glob("_C*.so"))
    report = {"status": status, "seconds": time.monotonic() - started, "libraries": libraries, "cuda_home": home}
    notable = [line for line in text.splitlines() if "rror" in line or "could not be built" in line]
    return report | {"messages": notable[-10:]}
