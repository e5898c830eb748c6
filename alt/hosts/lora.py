"""Weights inside peft's LoRA wrappers: the wrapped module, and what the active adapters add to its weight."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from .modules import qualified_name, require_gathered

__all__ = ["base_layer", "lora_deltas", "read_linear"]


def base_layer(module: Any) -> Any:
    """Returns the module under LoRA wrappers of peft, or the module itself."""
    for wrapper in _wrappers(module):
        module = wrapper.base_layer
    return module


def lora_deltas(module: Any, parameter: str) -> list[Tensor]:
    """Returns the terms that active LoRA adapters add to a parameter of the wrapped module."""
    deltas = []
    for wrapper in _wrappers(module):
        ours = getattr(wrapper, "parameter_name", parameter) == parameter
        if ours and not wrapper.disable_adapters and not wrapper.merged:
            deltas += [wrapper.get_delta_weight(name) for name in wrapper.active_adapters if name in wrapper.lora_A]
    return deltas


def read_linear(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Returns weight and bias of a ``torch.nn.Linear``, LoRA included.

    Raises:
        TypeError: it is another module, or its adapters do more than add to the weight (DoRA, biases of LoRA).
    """
    base = base_layer(module)
    if type_before_parametrizations(base) is not nn.Linear:
        raise TypeError(
            "metric='projection' needs keys from a torch.nn.Linear, bare or in a peft LoRA wrapper, got "
            f"{qualified_name(base)}; use metric='keys'"
        )
    if any(wrapper.lora_variant or any(wrapper.lora_bias.values()) for wrapper in _wrappers(module)):
        raise TypeError("metric='projection' needs LoRA adapters without DoRA and without biases; use metric='keys'")
    weight: Tensor = base.weight
    require_gathered(weight)
    for delta in lora_deltas(module, "weight"):
        weight = weight + delta.to(weight.dtype)
    return weight, base.bias


def _wrappers(module: Any) -> Iterator[Any]:
    while type(module).__module__.startswith("peft.tuners.lora") and hasattr(module, "base_layer"):
        yield module
        module = module.base_layer
