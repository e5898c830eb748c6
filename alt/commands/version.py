"""``alt --version``: what a bug report has to say about the installation."""

from __future__ import annotations

import platform
from collections.abc import Iterator

import typer

from .terminal import echo


def show_version(wanted: bool) -> None:
    """Prints one line per component and per backend, and stops."""
    if wanted:
        for line in describe_installation():
            echo(line)
        raise typer.Exit


def describe_installation() -> Iterator[str]:
    """Yields the versions of the package and of what it runs on, then each backend and why it is there or not."""
    import torch

    import alt_kernels
    from alt.measure import describe_machine

    machine = describe_machine("cuda" if torch.cuda.is_available() else "cpu")
    built_for = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    yield f"alt-kernels {machine['alt_kernels']}"
    if machine["commit"] != "unknown":
        yield f"commit      {machine['commit']}{', with local changes' if machine['modified'] else ''}"
    yield f"torch       {machine['torch']} ({built_for})"
    for name in ("triton", "numpy", "lightning", "open_clip_torch"):
        yield f"{name.removesuffix('_torch'):<11} {machine[name] or 'not installed'}"
    yield f"python      {machine['python']} ({platform.platform()})"
    yield f"CPU         {machine['cpu']}, {machine['isa']}, {machine['threads']} thread(s)"
    yield f"GPU         {machine.get('gpu', 'none that torch can use')}"
    for name, (available, reason) in alt_kernels.backends().items():
        yield f"backend {name}: {'yes' if available else 'no'}, {reason}"
