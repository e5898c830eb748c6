"""``alt cost`` and ``alt eval``: options, and errors as one sentence. Heavy imports wait until a command runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer


def cost(
    json_: Annotated[Path | None, typer.Option("--json", help="Also write the table as JSON.")] = None,
) -> None:
    """Count the paper's nine models and show the paper's GFLOPs beside them, with the deviation.

    Native is what is done here; the paper's convention adds what the paper appears to count on top. Single view; a
    table of three views is three times that.
    """
    with _sentences("alt cost"):
        import json

        from alt.evaluate.paper_costs import paper_costs
        from alt.tables import to_markdown

        found = paper_costs()
        head = [
            "model",
            "frames",
            "r",
            "native",
            "paper's convention",
            "paper prints",
            "deviation",
            "parameters",
        ]
        rows = [
            [
                *(f.printed.model, f.printed.frames, f.printed.r, f"{f.report.native_g:.2f}"),
                *(f"{f.report.paper_convention_g:.2f}", f.printed.gflops, f"{f.deviation:+.2f} %", f"{f.parameters:,}"),
            ]
            for f in found
        ]
        typer.echo("1e9 multiply-accumulates of one clip (the literature's GFLOPs), one view, 913 entities:\n")
        typer.echo(to_markdown(head, rows))
        worst = max(found, key=lambda f: abs(f.deviation))
        where = f"{worst.printed.model} at {worst.printed.frames} frames"
        typer.echo(f"Largest deviation: {abs(worst.deviation):.2f} %, {where}.")
        if json_ is not None:
            plain = [
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
            json_.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A model (.safetensors) or the folder of a run.")],
    data: Annotated[
        Path, typer.Option(help="List of clips, a line 'path label' each: folders of frames or array files.")
    ],
    labels: Annotated[
        Path | None, typer.Option(help="CSV of id,name; without it labels are numbers of the checkpoint's classes.")
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(help="Folder that list, labels and clips are relative to.", show_default="the list's folder"),
    ] = None,
    views: Annotated[
        str, typer.Option(metavar="CROPSxCLIPS", help="Spatial crops x temporal clips; softmaxes are added up.")
    ] = "1x1",
    r: Annotated[
        str | None,
        typer.Option(help="Tokens merged in every block, any number, without retraining.", show_default=False),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Videos a batch.")] = 8,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read clips.")] = 0,
    device: Annotated[str, typer.Option(help="Where it runs.")] = "cpu",
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    out: Annotated[
        Path | None, typer.Option(help="Write everything found as JSON, and FILE.csv per class.", show_default=False)
    ] = None,
    worst: Annotated[int, typer.Option(min=0, help="Show so many of the worst classes.")] = 5,
) -> None:
    """Test a model on clips: top-1, top-5, mean average precision, per class, as text and as JSON."""
    with _sentences("alt eval"):
        from alt.cost import count_macs
        from alt.evaluate.checkpoint import at_r, clip_files, open_model, parse_reduction
        from alt.evaluate.run import evaluate as run
        from alt.evaluate.views import Views

        model = open_model(checkpoint, device)
        dataset = clip_files(model, data, labels, views, root)
        if r is not None:
            model = at_r(model, parse_reduction(r))
        seen = Views.parse(views)
        gmacs = count_macs(model, views=seen.total).native_g
        result = run(
            model,
            dataset,
            batch_size=batch,
            workers=workers,
            device=device,
            precision=precision,
            checkpoint=str(checkpoint),
            data=str(data),
            r=model.config.r,
            frames=model.config.frames,
            crops=seen.crops,
            clips=seen.clips,
            gmacs_per_video=gmacs,
        )
        if (short := dataset.describe_short()) is not None:
            typer.echo(short)
        typer.echo(
            f"{result.videos} videos, {len(model.classes)} classes, {model.config.frames}x{seen} views, "
            f"r = {model.config.r}, {gmacs:.4g} GMACs a video"
        )
        typer.echo(f"top-1 {result.top1:.2f} %   top-5 {result.top5:.2f} %")
        mean, area = result.mean_class_accuracy, result.mean_average_precision
        typer.echo(f"mean class accuracy {mean:.2f} %   mAP {area:.2f} %")
        known = sorted((value, name) for name, value in result.per_class.items() if value is not None)
        if worst and known:
            typer.echo("lowest: " + ", ".join(f"{name} {value:.0f} %" for value, name in known[:worst]))
        if out is not None:
            result.save(out)
            table = result.save_per_class(out.with_suffix(".csv"))
            typer.echo(f"Wrote {out} and {table}.")


@contextlib.contextmanager
def _sentences(command: str) -> Iterator[None]:
    """What goes wrong ends in one sentence and a status, never in a traceback."""
    from alt.errors import UserError, one_line

    try:
        yield
    except UserError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from None
    except ModuleNotFoundError as error:
        typer.echo(f"Error: {command} needs {error.name}; install it with: pip install 'alt-kernels[models]'", err=True)
        raise typer.Exit(1) from None
    except (ValueError, TypeError, OSError) as error:
        typer.echo(f"Error: {one_line(error, 300)}.", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("Interrupted.", err=True)
        raise typer.Exit(130) from None
