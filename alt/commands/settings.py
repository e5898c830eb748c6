"""The settings that ``--set`` changes: their list, and their completion in a shell."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alt.train.config import TrainConfig

__all__ = ["complete_setting", "describe_settings"]


def describe_settings(config: TrainConfig) -> Iterator[str]:
    """Yields one line per setting of a configuration: its dotted key, its value, and what it takes."""
    from alt.validation import flatten

    kinds = _kinds(config.model.name)
    values = flatten(config)
    width = max(map(len, kinds))
    for key, kind in kinds.items():
        value = "null" if values.get(key, "") is None else str(values.get(key, "(the model's)"))
        yield f"{key:<{width}}  {value:<24}  {_describe(kind)}"


def complete_setting(incomplete: str) -> list[str]:
    """Returns the keys, or after ``KEY=`` the values, that begin with what is typed."""
    try:
        kinds = _kinds("alt-b16")
    except ModuleNotFoundError:  # without the extra there is nothing to complete
        return []
    key, equals, _ = incomplete.partition("=")
    words = [f"{key}={value}" for value in _choices(kinds.get(key))] if equals else [f"{known}=" for known in kinds]
    return [word for word in words if word.startswith(incomplete)]


def _kinds(model: str) -> dict[str, Any]:
    """Dotted key -> type, of all groups of a training configuration and of the options of its model."""
    from alt.models.registry import FAMILIES, parse_name
    from alt.train.config import TrainConfig

    kinds = {key: kind for key, kind in _walk(TrainConfig) if key != "model.options"}
    family, _ = parse_name(model)
    elsewhere = {f"model.options.{name}" for name in ("backbone", "frames", "r")}  # set by model.name, .frames and .r
    options = _walk(FAMILIES[family].config, "model.options.")
    return kinds | {key: kind for key, kind in options if key not in elsewhere}


def _walk(group: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, kind in typing.get_type_hints(group).items():
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            yield from _walk(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", kind


def _choices(kind: Any) -> list[str]:
    if kind is bool:
        return ["true", "false"]
    if typing.get_origin(kind) is typing.Literal:
        return [str(value) for value in typing.get_args(kind)]
    return []


def _describe(kind: Any) -> str:
    """Returns a type in words."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(a) for a in arguments)
    if origin is tuple:
        return f"list of {_describe(arguments[0])}"
    if choices := _choices(kind):
        return " | ".join(choices)
    words = {int: "whole number", float: "number", str: "text", type(None): "null"}
    return words.get(kind, getattr(kind, "__name__", str(kind)))
