"""Weights that a module makes from other tensors, for code that reads a module instead of calling it.

Pre-hooks of the module's call make them in pruning and in the older weight norm and spectral norm, so without the call
they are those of the previous one. Parametrizations make them whenever they are read, and some take a step in training
at each read (spectral norm's power iteration).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

__all__ = ["has_stepping_weights", "make_weights", "without_steps"]


def make_weights(module: nn.Module) -> None:
    """Makes the weights that pruning, weight norm or spectral norm keep on this module, as its call would.

    Submodules make their own when they are called.
    """
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, (BasePruningMethod, WeightNorm, SpectralNorm)):
            hook(module, ())


def has_stepping_weights(module: nn.Module) -> bool:
    """Returns True if reading the module's weights may change it, so that it must be read as often as its host does."""
    return module.training and is_parametrized(module)


@contextmanager
def without_steps(module: nn.Module) -> Iterator[None]:
    """Lets weights below ``module`` be read in the block without a step of their parametrizations."""
    stepping: list[Any] = [
        part
        for owner in module.modules()
        if is_parametrized(owner)
        for part in owner.parametrizations.modules()  # type: ignore[union-attr]
        if part.training
    ]
    for part in stepping:
        part.training = False
    try:
        yield
    finally:
        for part in stepping:
            part.training = True
