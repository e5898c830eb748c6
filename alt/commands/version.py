"""``alt --version``: what a bug report has to say about the installation."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator

import typer


def show_version(wanted: bool) -> None:
    """Prints one line per component and per backend, and stops."""
    if wanted:
        for line in describe_installation():
            typer.echo(line)
        raise typer.Exit


def describe_installation() -> Iterator[str]:
    """Yields the versions of the package and of what it runs on, then each backend and why it is there or not."""
    import torch

    import alt_kernels

    built_for = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    yield f"alt-kernels {alt_kernels.__version__}"
    yield f"torch       {torch.__version__} ({built_for})"
    for name in ("triton", "numpy", "lightning", "open_clip_torch"):
        yield f"{name.removesuffix('_torch'):<11} {_version_of(name)}"
    yield f"python      {platform.python_version()} ({platform.platform()})"
    yield "GPU         " + (torch.cuda.get_device_name() if torch.cuda.is_available() else "none that torch can use")
    for name, (available, reason) in alt_kernels.backends().items():
        yield f"backend {name}: {'yes' if available else 'no'}, {reason}"


def _version_of(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
