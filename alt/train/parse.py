"""Nested mappings from YAML and from ``a.b=c``, with one sentence per error."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from alt.errors import UsageError, UserError, one_line


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
    """Parses one YAML document; ``where`` names it in error messages."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or one_line(error)
        raise UserError(f"{where}{line} is not valid YAML: {problem}.") from None


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Puts ``over`` on top of ``base``: mappings are joined key by key, everything else is replaced."""
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        out[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return out


def read_override(text: str) -> dict[str, Any]:
    """Returns ``a.b=c`` as a nested mapping; c is read as YAML.

    Raises:
        UsageError: it has no such form.
    """
    path, equals, value = text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise UsageError(f"--set wants KEY=VALUE with a dotted key such as optim.lr=1e-5, got {text!r}.")
    try:
        over: Any = read_yaml(value, f"--set {path.strip()}") if value.strip() else None
    except UserError as error:
        raise UsageError(str(error)) from None
    for key in reversed(keys):
        over = {key: over}
    return dict(over)
