"""Tables as CSV and Markdown, with the seeds they come from."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from .protocols import Spread

__all__ = ["cell", "records", "to_csv", "to_markdown"]


def cell(value: Any, digits: int = 1) -> str:
    """A number with fixed digits, a spread as mean ± deviation, None as a dash."""
    if value is None:
        return "–"
    if isinstance(value, Spread):
        return str(value)
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def to_markdown(head: Sequence[str], rows: Sequence[Sequence[Any]], *, left: int = 1, digits: int = 1) -> str:
    """A Markdown table; the first ``left`` columns are texts, the others stand at the right."""
    marks = ["---" if i < left else "--:" for i in range(len(head))]
    lines = [head, marks, *([cell(value, digits).replace("|", "\\|") for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def to_csv(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Numbers unrounded, None as an empty field."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([["" if value is None else value for value in row] for row in rows])
    return buffer.getvalue()


def records(methods: Mapping[str, Mapping[str, Spread]]) -> tuple[list[str], list[list[Any]]]:
    """Head and rows, one for every method and measure: mean, deviation, how many, the values and their seeds."""
    head = ["method", "measure", "mean", "std", "n", "values", "seeds"]
    rows: list[list[Any]] = []
    for method, measures in methods.items():
        for measure, found in measures.items():
            values = " ".join(f"{v:.4f}" for v in found.values)
            seeds = " ".join(str(seed) for seed in found.seeds)
            rows.append([method, measure, found.mean, found.std, len(found.values), values, seeds])
    return head, rows
