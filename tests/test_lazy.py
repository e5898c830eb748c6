"""Names that load on first use: all are there, each is written once, and nothing loads before it is asked for."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import alt
from alt.lazy import attach

LAZY = ["alt", "alt.models", "alt.train", "alt.evaluate", "alt.visualize"]


@pytest.mark.parametrize("package", LAZY)
def test_every_name_resolves_and_is_listed(package: str) -> None:
    module = importlib.import_module(package)
    assert module.__all__ == sorted(set(module.__all__))
    for name in module.__all__:
        assert not isinstance(getattr(module, name), ModuleType), "a file of that name would hide it"
        assert name in dir(module)
        assert name in vars(module), "the second access does not resolve it again"
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        _ = module.nothing
    assert sum(line.startswith("def __getattr__") for line in Path(str(module.__file__)).read_text().splitlines()) == 0


@pytest.mark.parametrize("package", LAZY)
def test_every_name_is_written_once(package: str) -> None:
    module = importlib.import_module(package)
    code = re.sub(r'^""".*?"""', "", Path(str(module.__file__)).read_text(), flags=re.DOTALL)
    for name in module.__all__:
        assert len(re.findall(rf"^.*\b{name}\b.*$", code, re.MULTILINE)) == 1, name


def test_the_same_objects_as_in_their_modules() -> None:
    from alt.corpus.corpus import Corpus
    from alt.patch import patch_clip

    assert alt.Corpus is Corpus
    assert alt.patch_clip is patch_clip


def test_nothing_is_loaded_before_it_is_asked_for(tmp_path: Path) -> None:
    package = tmp_path / "shop"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from typing import TYPE_CHECKING\nfrom alt.lazy import attach\n"
        "if TYPE_CHECKING:\n    from .fruit import apple as apple, pear as pear\n    from .tools import saw as saw\n"
        "__getattr__, __dir__, __all__ = attach(__name__)\n"
    )
    (package / "fruit.py").write_text("apple, pear = 1, 2\n")
    (package / "tools.py").write_text("saw = 3\n")
    code = (
        "import sys, shop\nprint(shop.__all__, sorted({*dir(shop)} & {*shop.__all__}))\n"
        "print([m for m in sys.modules if 'shop' in m])\n"
        "from shop import pear\nprint(pear, 'shop.tools' in sys.modules)\nfrom shop import *\nprint(apple, saw)\n"
    )
    root = Path(alt.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": f"{tmp_path}:{root}"},
        capture_output=True,
        text=True,
        check=True,
    )
    names = "['apple', 'pear', 'saw']"
    assert done.stdout.splitlines() == [f"{names} {names}", "['shop']", "2 False", "1 3"]


def test_a_package_without_source_says_so() -> None:
    with pytest.raises(ImportError, match=r"math: its names are read from __init__\.py, which is not there"):
        attach("math")
