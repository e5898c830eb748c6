"""Finished evaluations in the tables of the ALT, X-CLIP and MAXI papers, beside the numbers that these print."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

from alt.errors import UserError
from alt.files import read_json
from alt.maxi_tables import MAXI_TABLES
from alt.paper_tables import TABLES as ALT_TABLES
from alt.paper_tables import Cell, Metric, PaperTable
from alt.tables import plus_minus, to_markdown
from alt.xclip_tables import XCLIP_TABLES

from .spread import mean_std

__all__ = ["TABLES", "Measured", "collect", "list_configurations", "rows_of_table", "write_tables"]

TABLES = (*ALT_TABLES, *XCLIP_TABLES, *MAXI_TABLES)
HEAD = ("configuration", "column", "ours", "std", "results", "ICLR", "CVPR", "X-CLIP", "MAXI", "printed std")
"""Columns of the CSV: one line per cell of a table."""


def list_configurations() -> list[str]:
    """Returns the configurations of all tables, each once, in their order."""
    cells = (cell for table in TABLES for row in table.rows.values() for cell in row)
    return list(dict.fromkeys(cell.configuration for cell in cells if cell.configuration is not None))


class Measured(NamedTuple):
    """The results of one configuration. top1, top5, mean_average_precision: percent of each. setting: of the first."""

    top1: tuple[float, ...]
    top5: tuple[float, ...]
    mean_average_precision: tuple[float, ...]
    setting: dict[str, Any]
    path: Path


def collect(paths: Iterable[str | Path]) -> dict[str, Measured]:
    """Reads what ``alt eval --out FOLDER`` or ``--json FILE`` wrote, by configuration.

    Args:
        paths: files, or folders with results.json.

    Raises:
        UserError: a file is missing or is no result, or two are of one configuration.
    """
    found: dict[str, Measured] = {}
    for name in paths:
        path = Path(name) / "results.json" if Path(name).is_dir() else Path(name)
        try:
            record = read_json(path)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: not a result of alt eval ({error}).") from None
        results = record.get("results", [record]) if isinstance(record, dict) else []
        try:
            settings = [dict(result["setting"]) for result in results]
            values = {metric: tuple(float(result[metric]) for result in results) for metric in get_args(Metric)}
            measured = Measured(**values, setting=settings[0], path=path)
            configuration = str(settings[0]["configuration"])
        except (KeyError, TypeError, ValueError, IndexError):
            raise UserError(f"{path}: not a result of alt eval that names its configuration.") from None
        if configuration in found:
            raise UserError(f"{path} and {found[configuration].path} are both results of {configuration}.")
        found[configuration] = measured
    return found


def rows_of_table(table: PaperTable, measured: Mapping[str, Measured]) -> list[list[Any]]:
    """Returns the rows of the Markdown table: a name, its published cost where the table has costs, and for every
    column ours and the published ones of :func:`_papers`."""
    return [
        [
            name,
            *([table.gflops.get(name)] if table.gflops else []),
            *(text for cell in cells for text in (_ours(cell, measured), *_theirs(table, cell))),
        ]
        for name, cells in table.rows.items()
    ]


def _papers(table: PaperTable) -> tuple[str, ...]:
    """Returns the papers whose numbers a table shows: the versions of ALT's, or another one."""
    return ("ICLR", "CVPR") if table.paper is None else (table.paper,)


def _values(cell: Cell, measured: Mapping[str, Measured]) -> tuple[float, ...]:
    result = measured.get(cell.configuration or "")
    return () if result is None else getattr(result, cell.metric)


def _ours(cell: Cell, measured: Mapping[str, Measured]) -> str | None:
    if cell.configuration is None:
        return None
    values = _values(cell, measured)
    return plus_minus(*mean_std(values)) if values else "not run"


def _theirs(table: PaperTable, cell: Cell) -> list[str | None]:
    own = [(cell.iclr, cell.std), (cell.cvpr, None)]
    found = own if table.paper is None else [(cell.printed, cell.std)]
    return [None if value is None else plus_minus(value, std) for value, std in found]


def write_tables(measured: Mapping[str, Measured]) -> tuple[str, list[list[Any]]]:
    """Returns (Markdown of all tables, rows of one CSV with the columns :data:`HEAD`)."""
    parts, rows = [], []
    for table in TABLES:
        versions = (("ICLR version", table.iclr), ("CVPR version", table.cvpr), (f"{table.paper} paper", table.where))
        numbered = "; ".join(f"{version}: {number}" for version, number in versions if number is not None)
        costs = ["GFLOPs"] if table.gflops else []
        head = [
            "",
            *costs,
            *(f"{column} {who}".strip() for column in table.columns for who in ("ours", *_papers(table))),
        ]
        parts.append(f"### {table.title}\n\n{numbered}.\n\n{to_markdown(head, rows_of_table(table, measured))}")
        for name, cells in table.rows.items():
            for column, cell in zip(table.columns, cells, strict=True):
                values = _values(cell, measured)
                mean, std = mean_std(values) if values else (None, None)
                label = cell.configuration or f"{table.key}: {name}"
                other = (cell.printed if table.paper == paper else None for paper in ("X-CLIP", "MAXI"))
                printed = (cell.iclr, cell.cvpr, *other, cell.std)
                rows.append([label, f"{table.key}: {column}", mean, std, len(values), *printed])
    run = [f"- `{name}`: {_describe(result)}" for name, result in measured.items()]
    note = (
        "Accuracies in percent. ICLR and CVPR are the two versions of the ALT paper (arXiv 2311.15619), X-CLIP is "
        "arXiv 2208.02816, MAXI arXiv 2303.08914; ours are from:\n\n"
    )
    return "\n".join([*parts, note + ("\n".join(run) or "- no run") + "\n"]), rows


def _describe(result: Measured) -> str:
    s = result.setting
    views = f"{s.get('frames')} x {s.get('crops')} x {s.get('clips')}"
    return f"{views}, r = {s.get('r')}, seed {s.get('seed')}, commit {s.get('commit')}, {result.path}"
