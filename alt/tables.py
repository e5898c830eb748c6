"""Tables as Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

__all__ = ["cell", "plus_minus", "to_csv", "to_markdown"]


def plus_minus(mean: float, std: float | None, *, signed: bool = False) -> str:
    """Returns a mean and its standard deviation as ``71.3 ± 0.3``; the mean alone where ``std`` is None.

    Args:
        signed: a positive mean gets a plus sign, as a difference should.
    """
    middle = f"{mean:+.1f}" if signed else f"{mean:.1f}"
    return middle if std is None else f"{middle} ± {std:.1f}"


def cell(value: Any, digits: int = 1) -> str:
    """Returns the text of a cell: a float with ``digits`` decimals, None as a dash, anything else as ``str`` has it."""
    if value is None:
        return "–"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def to_markdown(head: Sequence[str], rows: Sequence[Sequence[Any]], *, left: int = 1, digits: int = 1) -> str:
    """Returns a Markdown table.

    Args:
        head: names of the columns. rows: values as for :func:`cell`, one per column.
        left: columns that are aligned left; the others are aligned right. digits: decimals of floats.

    Raises:
        ValueError: a row has more or fewer values than there are columns.
    """
    wrong = next((row for row in rows if len(row) != len(head)), None)
    if wrong is not None:
        raise ValueError(f"rows: expected {len(head)} values per row, got {len(wrong)} in {list(wrong)}")
    lines = [[_escape(name) for name in head], ["---" if i < left else "--:" for i in range(len(head))]]
    lines += [[_escape(cell(value, digits)) for value in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def to_csv(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Returns a CSV table: numbers unrounded, None as an empty field."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([["" if value is None else value for value in row] for row in rows])
    return buffer.getvalue()


def _escape(text: str) -> str:
    """A bar would begin another column, and a line break another row."""
    return text.replace("|", "\\|").replace("\n", " ")
