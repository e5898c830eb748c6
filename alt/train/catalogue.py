"""The shipped configurations: plain files, and families with one configuration per combination.

A family file has ``family: NAME with {axes}``, ``axes`` (values per axis, each a piece of configuration) and the
settings that all members share. ``family: alt-{size}-k400-{frames}f`` with sizes b16, l14 and frames 8, 16 ships four.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from alt.errors import UserError
from alt.files import describe_error, read_text
from alt.validation import nearest

from .parse import MAX_TEXT, merge, read_yaml


@functools.cache
def _read_shipped() -> dict[str, dict[str, Any]]:
    """Returns name -> tree of all shipped configurations, with ``base`` unresolved."""
    found: dict[str, dict[str, Any]] = {}
    for entry in sorted((resources.files("alt") / "configs").iterdir(), key=lambda e: e.name):
        if not entry.name.endswith(".yaml"):
            continue
        tree = read_yaml(entry.read_text(encoding="utf-8"), entry.name)
        members = expand(tree) if "family" in tree else {entry.name.removesuffix(".yaml"): tree}
        for name, member in members.items():
            if name in found:
                raise UserError(f"{entry.name} ships {name} a second time.")
            found[name] = member
    return found


def expand(tree: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the members of a family: shared settings, then the piece of each axis in the order of the axes.

    A piece may have ``base``. Texts in the settings may use ``{axis}``.
    """
    shared = {key: value for key, value in tree.items() if key not in ("family", "axes")}
    axes: Mapping[str, Mapping[Any, Any]] = tree["axes"]
    members = {}
    for values in itertools.product(*axes.values()):
        labels = {axis: str(value) for axis, value in zip(axes, values, strict=True)}
        member = dict(shared)
        for axis, value in zip(axes, values, strict=True):
            member = merge(member, axes[axis][value] or {})
        members[tree["family"].format(**labels)] = _fill(member, labels)
    return members


def _fill(value: Any, labels: Mapping[str, str]) -> Any:
    if isinstance(value, str) and "{" in value:
        return value.format(**labels)
    if isinstance(value, Mapping):
        return {key: _fill(item, labels) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, labels) for item in value]
    return value


def names() -> list[str]:
    """Returns the shipped configurations that can be trained; those named "base..." are only bases."""
    return [name for name in _read_shipped() if not name.startswith("base")]


def find(source: str | Path, changes: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Returns the tree of a file or of a shipped name on top of its bases, and ``changes`` on top of it."""
    text = str(source)
    if Path(text).suffix in (".yaml", ".yml"):
        tree, name = _read(Path(text)), Path(text).stem
    elif text in _read_shipped():
        tree, name = _read_shipped()[text], text
    else:
        known = list(_read_shipped())
        raise UserError(
            f"{text} is neither a YAML file nor a shipped configuration ('alt train --list' shows them); "
            f"{nearest(text, known) if len(known) < 12 else _close(text, known)}"
        )
    tree = _resolve_bases(merge({"name": name}, tree), (text,), Path(text).parent)
    return functools.reduce(merge, changes, tree)


def _close(text: str, known: list[str]) -> str:
    hint = nearest(text, known)
    return hint if hint.startswith("did") else "none is called anything like it."


def _read(path: Path) -> dict[str, Any]:
    try:
        text = read_text(path, MAX_TEXT)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {describe_error(error)}.") from None
    except ValueError as error:
        raise UserError(f"{error}.") from None
    tree = read_yaml(text, str(path))
    if not isinstance(tree, Mapping):
        raise UserError(f"{path} must hold groups of settings (model:, data:, ...), got {type(tree).__name__}.")
    return dict(tree)


def _resolve_bases(tree: dict[str, Any], seen: tuple[str, ...], folder: Path) -> dict[str, Any]:
    base = tree.pop("base", None) if (tree := dict(tree)) else None
    if base is None:
        return tree
    if not isinstance(base, str):
        raise UserError(f"base must be the name of a configuration, got {base!r}.")
    if base in seen:
        raise UserError(f"base: {' -> '.join((*seen, base))} goes in a circle.")
    if Path(base).suffix in (".yaml", ".yml"):
        path = folder / base
        return merge(_resolve_bases(_read(path), (*seen, base), path.parent), tree)
    if base not in _read_shipped():
        raise UserError(f"base: {base} is not a shipped configuration; {_close(base, list(_read_shipped()))}")
    return merge(_resolve_bases(_read_shipped()[base], (*seen, base), folder), tree)
