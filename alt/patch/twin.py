"""Copies of a model that share its weights, to measure or count another r without touching the model."""

from __future__ import annotations

import copy
from itertools import chain
from typing import TypeVar

from torch import nn

from . import get_handle, patch_model
from .apply import is_patched
from .handle import PatchHandle

Model = TypeVar("Model", bound=nn.Module)


def share_weights(model: Model) -> Model:
    """Returns a copy with modules of its own and the same parameters and buffers, so it takes no memory for weights.

    Patching the copy leaves the model as it is. A patched model gives a patched copy with a handle of its own.
    """
    return copy.deepcopy(model, {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())})


def patched_twin(model: nn.Module) -> PatchHandle:
    """Returns the handle of a patched copy that shares the model's weights.

    It has the options of the model's own patch, or those of ``patch_model(model, 0)``.

    Raises:
        TypeError: the model is not supported.
    """
    if not isinstance(model, nn.Module):
        return patch_model(model, 0)  # which says so
    twin = share_weights(model)
    return get_handle(twin) if any(is_patched(module) for module in twin.modules()) else patch_model(twin, 0)
