"""Public names of a package that are imported on first use."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable
from importlib.abc import InspectLoader

__all__ = ["attach"]


def attach(package: str) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """Returns ``__getattr__``, ``__dir__`` and ``__all__`` of a package whose names are imported on first use.

    The names are those that the package's ``__init__.py`` imports under ``if TYPE_CHECKING:``. So each is written
    once, and type checkers and editors see an ordinary import::

        if TYPE_CHECKING:
            from .regions import region_map as region_map

        __getattr__, __dir__, __all__ = attach(__name__)

    Args:
        package: ``__name__`` of the package.

    Raises:
        ImportError: the package's source cannot be read.
    """
    homes = _homes(package)

    def get(name: str) -> object:
        home = homes.get(name)
        if home is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(home, package), name)
        setattr(sys.modules[package], name, value)  # the next access does not come here
        return value

    public = sorted(name for name in homes if not name.startswith("_"))  # __version__ is no part of a star import
    return get, lambda: sorted({*vars(sys.modules[package]), *homes}), public


def _homes(package: str) -> dict[str, str]:
    """Maps each public name to its module, as the package's source writes it (``.regions``)."""
    spec = sys.modules[package].__spec__
    loader = None if spec is None else spec.loader
    source = loader.get_source(package) if isinstance(loader, InspectLoader) else None
    if source is None:
        raise ImportError(f"{package}: its names are read from __init__.py, which is not there", name=package)
    found: dict[str, str] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for line in node.body:
                assert isinstance(line, ast.ImportFrom), ast.unparse(line)
                home = "." * line.level + (line.module or "")
                found |= {alias.name: home for alias in line.names}
    return found
