"""``alt cost``: our count of the paper's models beside the paper's."""

from __future__ import annotations

from .options import JsonFile
from .outputs import STDOUT, check_file, write_json
from .terminal import echo


def cost(json_: JsonFile = None) -> None:
    """Count the paper's nine models and show the paper's GFLOPs beside them, with the deviation.

    "native" counts what is computed here; the paper's convention adds what the paper appears to count as well. One
    view per clip: a table of three views is three times that.
    """
    from alt.evaluate.paper_costs import paper_costs
    from alt.tables import to_markdown

    check_file(json_, "--json")
    found = paper_costs()
    if json_ is not None:
        rows = [
            {
                **f.printed._asdict(),
                "native": f.report.native,
                "paper_convention": f.report.paper_convention,
                "by_component": f.report.by_component,
                "by_convention": f.report.by_convention,
                "deviation_percent": f.deviation,
                "parameters": f.parameters,
            }
            for f in found
        ]
        write_json(rows, json_, "the table")
        if json_ == STDOUT:
            return
    head = ["model", "frames", "r", "native", "paper's convention", "paper prints", "deviation", "parameters"]
    table = [
        [
            *(f.printed.model, f.printed.frames, f.printed.r, f"{f.report.native_g:.2f}"),
            *(f"{f.report.paper_convention_g:.2f}", f.printed.gflops, f"{f.deviation:+.2f} %", f"{f.parameters:,}"),
        ]
        for f in found
    ]
    echo("1e9 multiply-accumulates per clip (the literature's GFLOPs), one view, 913 entities:\n")
    echo(to_markdown(head, table))
    worst = max(found, key=lambda f: abs(f.deviation))
    where = f"{worst.printed.model} at {worst.printed.frames} frames"
    echo(f"Largest deviation: {abs(worst.deviation):.2f} %, {where}.")
