"""Before anything runs: wheels that were brought along, and the compiled library, built in place for this GPU."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .processes import OUT_OF_TIME, finish

ROOT = Path(__file__).resolve().parents[2]


def install_wheels(folder: str) -> str:
    """Unpack a folder of wheels for this process and its children; nothing is fetched, nothing installed is touched."""
    wheels = sorted(Path(folder).glob("*.whl"))
    if not wheels:
        raise ValueError(f"WHEELS: expected a folder with *.whl files, got {folder!r}")
    target = Path(tempfile.mkdtemp(prefix="alt-wheels-"))
    unpack_wheels(wheels, target)
    use_folder(target)
    return str(target)


def unpack_wheels(wheels: Sequence[Path], target: Path) -> None:
    """Put the files of wheels into ``target``, whatever they say that they need."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile"]
    subprocess.run([*command, "--target", str(target), *map(str, wheels)], check=True)


def use_folder(target: Path) -> None:
    """Let this process and its children import from ``target``, last: what the machine has goes first."""
    sys.path.append(str(target))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(target)]))


def read_ahead() -> None:
    """Begin to read PyTorch's libraries from the disk, of which the first call of each would have to wait."""
    import importlib.util

    spec = importlib.util.find_spec("torch")  # found, not imported
    if spec is None or spec.origin is None:
        return
    site = Path(spec.origin).parents[1]
    paths = [*site.glob("torch/lib/*.so*"), *site.glob("nvidia/*/lib/*.so*")]

    def read() -> None:
        for path in paths:
            with contextlib.suppress(OSError), path.open("rb", buffering=0) as file:
                while file.read(2**24):
                    pass

    threading.Thread(target=read, daemon=True).start()


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
