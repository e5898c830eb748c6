"""``alt eval``: a trained model on a list of clips."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .logs import logger
from .options import (
    Batch,
    CropsAndClips,
    Device,
    JsonFile,
    Labels,
    Precision,
    Reduction,
    Root,
    list_of_clips,
    parse_device,
    parse_reduction,
    parse_views,
)
from .outputs import STDOUT, check_file, check_folder, write_json
from .progress import progress_bar


def evaluate(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A model (.safetensors), or the folder of a run that ended.")
    ],
    data: Annotated[Path, list_of_clips()],
    labels: Labels = None,
    root: Root = None,
    views: CropsAndClips = "1x1",
    r: Reduction = None,
    batch: Batch = 8,
    workers: Annotated[int, typer.Option(metavar="N", min=0, help="Processes that read clips.")] = 0,
    device: Device = "auto",
    precision: Annotated[Precision, typer.Option(help="Precision of the activations.")] = Precision.fp32,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Folder for results.json and the table per class, results.csv.", show_default=False
        ),
    ] = None,
    json_: JsonFile = None,
    worst: Annotated[int, typer.Option(metavar="N", min=0, help="Number of the worst classes to show.")] = 5,
) -> None:
    """Test a model on clips: top-1, top-5, mean average precision and accuracy per class."""
    from alt.cost import count_macs
    from alt.evaluate.checkpoint import at_r, clip_files, open_model
    from alt.evaluate.run import evaluate as run

    seen = parse_views(views)
    reduction = None if r is None else parse_reduction(r)
    place = parse_device(device)
    results = table = None
    if out is not None and out.suffix == ".json":  # before --json took a file, --out did
        logger.warning("--out %s: a file's name here is deprecated; write --json FILE or --out FOLDER", out)
        results, table = out, out.with_suffix(".csv")
        check_file(results, "--out")
    elif out is not None:
        results, table = out / "results.json", out / "results.csv"
        check_folder(out, "--out")
    check_file(json_, "--json")

    model = open_model(checkpoint, place)
    dataset = clip_files(model, data, labels, views, root)
    if reduction is not None:
        model = at_r(model, reduction)
    gmacs = count_macs(model, views=seen.total).native_g
    logger.info("%d clips, %d classes, on %s", len(dataset), len(model.classes), place)
    with progress_bar("clips", len(dataset)) as progress:
        result = run(
            model,
            dataset,
            batch_size=batch,
            workers=workers,
            device=place,
            precision=precision.value,
            progress=progress,
            checkpoint=str(checkpoint),
            data=str(data),
            r=model.config.r,
            frames=model.config.frames,
            crops=seen.crops,
            clips=seen.clips,
            gmacs_per_video=gmacs,
        )
    if (short := dataset.describe_short()) is not None:
        logger.warning("%s", short)
    if json_ is not None:
        write_json(result.to_dict(), json_, "the result")
    if json_ != STDOUT:
        typer.echo(
            f"{result.videos} videos, {len(model.classes)} classes, {model.config.frames}x{seen} views, "
            f"r = {model.config.r}, {gmacs:.4g} GMACs per video"
        )
        typer.echo(f"top-1 {result.top1:.2f} %   top-5 {result.top5:.2f} %")
        mean, area = result.mean_class_accuracy, result.mean_average_precision
        typer.echo(f"mean class accuracy {mean:.2f} %   mAP {area:.2f} %")
        known = sorted((value, name) for name, value in result.per_class.items() if value is not None)
        if worst and known:
            typer.echo("lowest: " + ", ".join(f"{name} {value:.0f} %" for value, name in known[:worst]))
    if results is not None and table is not None:
        result.save(results)
        result.save_per_class(table)
        typer.echo(f"Wrote {results} and {table}.", err=json_ == STDOUT)
