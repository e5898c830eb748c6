"""Nested dataclasses from YAML and from ``a.b=c``, with one sentence for whatever does not fit."""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from alt.errors import UserError, one_line


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars: only true and false are booleans ("off" is a word) and 8e-6 is a number."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.inf|\.nan)$"),
    list("-+.0123456789"),
)


def read_yaml(text: str, where: str) -> Any:
    """Parse one YAML document; ``where`` names it in the sentence of an error."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or one_line(error)
        raise UserError(f"{where}{line} is not valid YAML: {problem}.") from None


def nearest(word: str, known: Sequence[str]) -> str:
    """A hint: the known word most like ``word``, or all of them where none is."""
    match = difflib.get_close_matches(str(word), known, n=1, cutoff=0.5)
    return f"did you mean {match[0]!r}?" if match else "known are " + ", ".join(known) + "."


def dotted(path: Sequence[str]) -> str:
    return ".".join(path) or "the configuration"


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` on top of ``base``: mappings are joined key by key, everything else is replaced."""
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        out[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return out


def apply_override(tree: dict[str, Any], text: str) -> dict[str, Any]:
    """``a.b=c`` into a nested mapping; c is read as YAML."""
    path, equals, value = text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise UserError(f"--set wants KEY=VALUE with a dotted key such as optim.lr=1e-5, got {text!r}.")
    over: Any = read_yaml(value, f"--set {path.strip()}") if value.strip() else None
    for key in reversed(keys):
        over = {key: over}
    return merge(tree, over)


def build(kind: type, tree: Any, path: Sequence[str] = ()) -> Any:
    """A dataclass from a nested mapping; unknown keys and wrong types are refused by name."""
    if tree is None:
        tree = {}
    if not isinstance(tree, Mapping):
        raise UserError(f"{dotted(path)} must be a group of settings, got {tree!r}.")
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    values = {}
    for key, value in tree.items():
        if key not in names:
            raise UserError(f"{dotted([*path, str(key)])} is not a setting; {nearest(str(key), names)}")
        values[key] = coerce(hints[key], value, [*path, key])
    return kind(**values)


def coerce(hint: Any, value: Any, path: Sequence[str]) -> Any:
    """``value`` as ``hint`` says, or one sentence; integers pass as floats, nothing else is converted."""
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, path)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        for kind in sorted((a for a in arguments if a is not type(None)), key=lambda a: a is float):
            try:
                return coerce(kind, value, path)
            except UserError:
                continue
    elif origin is typing.Literal:
        if value in arguments and not isinstance(value, bool):
            return value
        names = [str(a) for a in arguments]
        raise UserError(
            f"{dotted(path)} must be one of {', '.join(names)}, got {value!r}; {nearest(str(value), names)}"
        )
    elif origin is tuple:
        if isinstance(value, list | tuple):
            return tuple(coerce(arguments[0], item, path) for item in value)
    elif origin is dict:
        if value is None or isinstance(value, Mapping):
            return dict(value or {})
    elif hint is Any:
        return value
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif hint is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif isinstance(hint, type) and isinstance(value, hint):
        return value
    raise UserError(f"{dotted(path)} must be {describe(hint)}, got {value!r}.")


def describe(hint: Any) -> str:
    """A type in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(a) for a in arguments)
    if origin is tuple:
        return f"a list of {describe(arguments[0]).removeprefix('a ').removeprefix('an ')}s"
    if origin is dict:
        return "a group of settings"
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}
    return words.get(hint, getattr(hint, "__name__", str(hint)))


def plain(value: Any) -> Any:
    """A dataclass tree as mappings and lists, ready for YAML and JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mapping to dotted keys."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            out.update(flat(value, f"{prefix}{key}."))
        else:
            out[f"{prefix}{key}"] = value
    return out
