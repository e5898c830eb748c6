"""``alt table``: finished evaluations in the paper's tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .outputs import check_folder
from .terminal import echo


def table(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[RESULT]...", help="Folders or files that alt eval wrote.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder for tables.md, tables.csv and pareto.png.", show_default=False),
    ] = None,
) -> None:
    """Show the tables of the ALT, X-CLIP and MAXI papers: your results, and what the papers print.

    A result fills the cells of its configuration. Cells without one say "not run". With --out, top-1 on Kinetics-400
    is also drawn over cost.
    """
    from alt.evaluate.paper_tables import HEAD, collect, write_tables
    from alt.evaluate.pareto import draw_pareto, list_points
    from alt.files import replacing
    from alt.tables import to_csv

    if out is not None:
        check_folder(out, "--out")
    measured = collect(runs or [])
    text, rows = write_tables(measured)
    if out is None:
        echo(text)
        return
    for name, content in (("tables.md", text), ("tables.csv", to_csv(HEAD, rows))):
        with replacing(out / name, "the tables") as partial:
            partial.write_text(content, encoding="utf-8")
    picture = draw_pareto(list_points(measured), out / "pareto.png")
    echo(f"Wrote {out / 'tables.md'}, {out / 'tables.csv'} and {picture}.")
