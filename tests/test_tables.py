"""Markdown and CSV tables: values, what stands for nothing, and text that would break the table."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import alt
from alt import paper
from alt.evaluate.spread import spread
from alt.tables import plus_minus, to_csv, to_markdown


def test_markdown() -> None:
    rows = [["a", spread([1.0, 3.0]), 2.345], ["b|c", None, 7], ["d\ne", plus_minus(1.25, None), ""]]
    assert to_markdown(["m", "x", "y|z"], rows, digits=2) == (
        "| m | x | y\\|z |\n| --- | --: | --: |\n| a | 2.0 ± 1.4 | 2.35 |\n| b\\|c | – | 7 |\n| d e | 1.2 |  |\n"
    )
    assert (plus_minus(1.25, 0.5, signed=True), plus_minus(-1.25, 0.5, signed=True)) == ("+1.2 ± 0.5", "-1.2 ± 0.5")
    assert to_markdown(["m", "x"], [], left=2) == "| m | x |\n| --- | --- |\n"
    with pytest.raises(ValueError, match=r"rows: expected 2 values per row, got 1 in \['a'\]"):
        to_markdown(["m", "x"], [["a"]])


def test_csv() -> None:
    rows = [["a, b", 0.1 + 0.2, None], ["c", spread([10.0]), 1]]
    assert to_csv(["m", "x", "y"], rows).splitlines()[:2] == ["m,x,y", '"a, b",0.30000000000000004,']


def test_the_papers_numbers_are_written_in_one_place() -> None:
    printed = {f"{c.top1}" for c in paper.COSTS if c.top1} | {f"{c.three_views}" for c in paper.COSTS if c.three_views}
    tables = (paper.COMPONENTS, paper.CORPUS_SUBSETS, paper.ADAPTER_PARTS)
    printed |= {str(value) for table in tables for row in table.rows.values() for value in row}
    pattern = re.compile(rf"(?<![\d.])({'|'.join(map(re.escape, sorted(printed)))})(?![\d.])")
    root = Path(alt.__file__).parent
    found = {
        f"{path.relative_to(root)}: {match[0]}"
        for path in root.rglob("*.py")
        if path.name not in ("paper.py", "paper_tables.py", "xclip_tables.py", "maxi_tables.py")  # some are equal
        for match in pattern.finditer(path.read_text())
    }
    assert not found


def test_costs_of_the_paper() -> None:
    assert paper.cost_of("alt-b16", 8) == paper.Cost("alt-b16", 8, 8, 110, 82.4, 83.6)
    assert paper.cost_of("alt-l14", 8, frames=32) == paper.Cost("alt-l14", 32, 8, 1649, None, 87.9)
    assert paper.cost_of("alt-l14", 4) is None
