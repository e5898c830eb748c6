"""NVIDIA's disassemblers: those that come with Triton, and those on the PATH."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path


def run_tool(name: str, *arguments: str, on_path_first: bool = False) -> str:
    """Returns the output of a disassembler such as "nvdisasm".

    Args:
        name: of the tool. arguments: of its command line.
        on_path_first: for what another compiler made: take the tool on the PATH, which may be newer than Triton's.

    Raises:
        FileNotFoundError: the tool is in neither place.
    """
    folders = [os.environ.get("PATH", "")]
    spec = importlib.util.find_spec("triton")
    if spec is not None and spec.origin is not None:
        folders.insert(1 if on_path_first else 0, str(Path(spec.origin).parent / "backends" / "nvidia" / "bin"))
    path = os.pathsep.join(folders)
    found = shutil.which(name, path=path)
    if found is None:
        raise FileNotFoundError(f"{name}: not on the PATH and not beside Triton")
    environment = {**os.environ, "PATH": path}
    return subprocess.run([found, *arguments], capture_output=True, text=True, env=environment, check=True).stdout
