"""``alt cost``: our count of the paper's models beside the paper's, or of one model by its parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from alt.errors import UsageError, one_line

from .options import JsonFile, Reduction, parse_reduction
from .outputs import STDOUT, check_file, write_json
from .terminal import echo

if TYPE_CHECKING:
    from pathlib import Path


def cost(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="A name of alt.list_models(): xclip-b16. Without it, the paper's nine models.",
            show_default=False,
        ),
    ] = None,
    frames: Annotated[
        int | None, typer.Option(metavar="T", min=1, help="Frames per clip of MODEL.", show_default=False)
    ] = None,
    r: Reduction = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            metavar="CLIP",
            help="Another CLIP than MODEL's: open_clip:NAME, or hf:PATH, of which the configuration alone is read.",
            show_default=False,
        ),
    ] = None,
    classes: Annotated[int, typer.Option(metavar="C", min=1, help="Classes that MODEL scores.")] = 400,
    json_: JsonFile = None,
) -> None:
    """Count a model by its parts; without a name, the paper's nine models beside the paper's GFLOPs.

    "native" counts what is computed here; the paper's convention adds what the paper appears to count as well. One
    view per clip: a table of three views is three times that.
    """
    check_file(json_, "--json")
    if model is not None:
        _cost_of_model(model, backbone, frames, r, classes, json_)
        return
    if frames is not None or r is not None or backbone is not None:
        raise UsageError("--frames, --r and --backbone need the name of a model: alt cost MODEL.")
    from alt.evaluate.paper_costs import paper_costs
    from alt.tables import to_markdown

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


def _cost_of_model(
    name: str, backbone: str | None, frames: int | None, r: str | None, classes: int, json_: Path | None
) -> None:
    from alt.cost import count_macs
    from alt.evaluate.paper_costs import meta_model
    from alt.tables import to_markdown

    try:
        reduction = None if r is None else parse_reduction(r)
        model = meta_model(name, backbone=backbone, frames=frames, r=reduction, classes=classes)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{one_line(error, 300)}.") from None
    report = count_macs(model)
    parameters = sum(p.numel() for p in model.parameters())
    if json_ is not None:
        values = {
            "model": name,
            "backbone": model.config.backbone,
            "frames": model.config.frames,
            "r": model.r,
            "classes": classes,
            "native": report.native,
            "paper_convention": report.paper_convention,
            "by_component": report.by_component,
            "by_convention": report.by_convention,
            "parameters": parameters,
        }
        write_json(values, json_, "the count")
        if json_ == STDOUT:
            return
    rows = [[part.replace("_", " "), f"{macs / 1e9:.3f}"] for part, macs in report.by_component.items() if macs]
    rows.append(["native", f"{report.native_g:.3f}"])
    rows += [
        [f"+ {part.replace('_', ' ')}", f"{macs / 1e9:.3f}"] for part, macs in report.by_convention.items() if macs
    ]
    rows.append(["paper's convention", f"{report.paper_convention_g:.3f}"])
    over = "" if backbone is None else f" over {model.config.backbone}"
    echo(f"{name}{over}: {model.config.frames} frames, r = {model.r}, {classes} classes, {parameters:,} parameters\n")
    echo("1e9 multiply-accumulates per clip (the literature's GFLOPs), one view:\n")
    echo(to_markdown(["part", "1e9 MACs"], rows))
