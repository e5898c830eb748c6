"""Every name that a package exports has a caller outside the file it lies in, or a place in the documentation."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CODE = [
    path for room in ("alt", "alt_kernels", "benchmarks", "examples", "tools") for path in (ROOT / room).rglob("*.py")
]
PAGES = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]


def packages() -> list[str]:
    found = []
    for name in ("alt", "alt_kernels"):
        package = importlib.import_module(name)
        found.append(name)
        found += [m.name for m in pkgutil.walk_packages(package.__path__, f"{name}.") if m.ispkg]
    return [name for name in found if getattr(importlib.import_module(name), "__all__", None)]


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text))


def unused(exported: dict[str, Path], code: dict[Path, set[str]], documented: set[str]) -> list[str]:
    """Names that stand in no other file than their own; an ``__init__.py`` only hands them on."""
    elsewhere = {path: found for path, found in code.items() if path.name != "__init__.py"}
    return [
        name
        for name, home in exported.items()
        if name not in documented and not any(name in found for path, found in elsewhere.items() if path != home)
    ]


def home_of(package: str, name: str) -> Path:
    value = getattr(importlib.import_module(package), name)
    module = getattr(value, "__module__", None) or package
    file = getattr(importlib.import_module(module), "__file__", None) or ""
    return Path(file)


@pytest.fixture(scope="module")
def texts() -> tuple[dict[Path, set[str]], set[str]]:
    code = {path: words(path.read_text(encoding="utf-8")) for path in CODE}
    return code, words("\n".join(page.read_text(encoding="utf-8") for page in PAGES))


@pytest.mark.parametrize("package", packages())
def test_every_exported_name_has_a_caller_or_a_page(package: str, texts: tuple[dict[Path, set[str]], set[str]]) -> None:
    names = importlib.import_module(package).__all__
    assert unused({name: home_of(package, name) for name in names}, *texts) == []


def test_the_check_finds_a_name_that_nobody_calls() -> None:
    home, other = Path("a/home.py"), Path("a/other.py")
    code = {home: {"kept", "lost"}, other: {"kept"}, Path("a/__init__.py"): {"kept", "lost", "told"}}
    exported = dict.fromkeys(("kept", "lost", "told"), home)
    assert unused(exported, code, {"told"}) == ["lost"]
