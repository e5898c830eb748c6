"""The counts of docs/hosts.md, and that every reason of a refusal is about a module that exists."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from alt.hosts.refusals import REASONS

from . import every_model
from .supported_table import PAGE, replace_part


@pytest.mark.parametrize("package", REASONS)
def test_every_reason_is_about_a_module_that_exists(package: str) -> None:
    spec = importlib.util.find_spec(package.removesuffix("."))
    assert spec is not None
    assert spec.origin is not None
    home = Path(spec.origin).parent
    found = {".".join(path.relative_to(home).with_suffix("").parts) for path in home.rglob("*.py")}
    for start in REASONS[package]:
        assert any(name.startswith(start) for name in found), start


def test_the_page_counts_each_model_once() -> None:
    """The totals of the page: exact, refused with a reason and without a host make up all that were asked."""
    rows = [
        line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(("| open_clip |", "| timm |"))
    ]
    assert len(rows) == 2
    for row in rows:
        asked, *parts = (int(cell) for cell in row.strip("| ").split(" | ")[1:])
        assert asked == sum(parts) > 100


@pytest.mark.slow
@pytest.mark.parametrize("package", every_model.JUDGES)
def test_what_is_patched_is_shown_to_be_exact(package: str) -> None:
    verdicts = every_model.judge_all(package)
    assert not [verdict for verdict in verdicts if verdict.outcome == every_model.UNTESTED]


@pytest.mark.slow
def test_the_table_in_the_docs_is_that_of_every_model() -> None:
    page = PAGE.read_text(encoding="utf-8")
    verdicts = [verdict for package in every_model.JUDGES for verdict in every_model.judge_all(package)]
    made = replace_part(page, every_model.BEGIN, every_model.table(verdicts), every_model.END)
    assert page == made, "python -m tests.hosts.every_model"
