"""Nested mappings from YAML and from ``a.b=c``, with one sentence per error."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from alt.errors import UsageError, UserError, one_line

MAX_TEXT = 1 << 18
"""Bytes of a configuration file: the parser takes seconds for a megabyte."""
_MAX_DEPTH, _MAX_NODES = 32, 10_000


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars: true and false are the booleans ("off" is a word), 8e-6 is a number, 1:30 and 010 are words.

    Nesting and the number of values are limited, a value counted wherever an alias repeats it. A key stands once in its
    group.
    """

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"more than {_MAX_DEPTH} groups are nested")
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def get_single_node(self) -> Any:
        root = super().get_single_node()
        if root is not None:
            self._count(root, {}, set())
        return root

    def _count(self, node: yaml.Node, known: dict[int, int], above: set[int]) -> int:
        """Returns the values in a node, aliases written out."""
        if id(node) in above:
            raise yaml.MarkedYAMLError(problem="a group is part of itself", problem_mark=node.start_mark)
        if id(node) not in known:
            above.add(id(node))
            children = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else []
            if isinstance(node, yaml.SequenceNode):
                children = node.value
            known[id(node)] = 1 + sum(self._count(child, known, above) for child in children)
            above.discard(id(node))
        if known[id(node)] > _MAX_NODES:
            raise yaml.MarkedYAMLError(problem=f"it has more than {_MAX_NODES} values", problem_mark=node.start_mark)
        return known[id(node)]

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[Any] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                    raise yaml.MarkedYAMLError(problem=f"{key.value!r} is set twice", problem_mark=key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float", ":int", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.inf|\.nan)$"),
    list("-+.0123456789"),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9]{0,99})$"), list("-+0123456789")
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
    except Exception as error:  # a tag that does not fit its value makes PyYAML raise anything
        raise UserError(f"{where} is not valid YAML: {one_line(error)}.") from None


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
