"""``alt eval``: a trained model on what a configuration says, or on a list of clips."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alt.errors import UsageError

from .logs import logger
from .options import (
    Batch,
    CropsAndClips,
    Device,
    JsonFile,
    Labels,
    Overrides,
    Precision,
    Reduction,
    Root,
    is_given,
    list_of_clips,
    parse_device,
    parse_reduction,
    parse_views,
)
from .outputs import STDOUT, check_file, check_folder, write_json
from .progress import progress_bar
from .settings import describe_settings
from .terminal import echo

if TYPE_CHECKING:
    from alt.evaluate.execute import Evaluated, Placement
    from alt.evaluate.views import Views


def evaluate(
    ctx: typer.Context,
    checkpoint: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A model (.safetensors), or the folder of a run that ended.")
    ],
    data: Annotated[Path | None, list_of_clips()] = None,
    config: Annotated[
        str | None,
        typer.Option(
            metavar="CONFIG",
            help="Without --data: the configuration whose evaluation is executed. Without both, that of the run.",
            show_default=False,
        ),
    ] = None,
    set_: Overrides = None,
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
            metavar="FOLDER",
            help="Folder for results.json, the table per class (results.csv) and pictures of the classes.",
            show_default=False,
        ),
    ] = None,
    json_: JsonFile = None,
    worst: Annotated[int, typer.Option(metavar="N", min=0, help="Number of the worst classes to show.")] = 5,
) -> None:
    """Test a model: top-1, top-5, mean average precision and accuracy per class.

    Without --data the evaluation of a configuration is executed on its data: supervised, few-shot, linear-probe or
    zero-shot, with its frames and views. With --data a list of clips is tested, with --views.
    """
    if "help" in (set_ or []):
        from alt.train.config import TrainConfig, load_config

        for line in describe_settings(load_config(config) if config else TrainConfig()):
            echo(line)
        return
    from alt.evaluate.execute import Placement

    seen = parse_views(views)
    reduction = None if r is None else parse_reduction(r)
    where = Placement(parse_device(device), precision.value, batch, workers, progress_bar)
    results = None
    if out is not None and out.suffix == ".json":  # before --json took a file, --out did
        logger.warning("--out %s: a file's name here is deprecated; write --json FILE or --out FOLDER", out)
        results = out
        check_file(results, "--out")
    elif out is not None:
        results = out / "results.json"
        check_folder(out, "--out")
    check_file(json_, "--json")

    if data is None:
        _refuse_options_of_lists(ctx)
        found = _execute(checkpoint, config, set_ or [], reduction, where)
    elif config is not None or set_:
        raise UsageError("--data tests on a list of clips, --config and --set on what a configuration says: give one.")
    else:
        found = _test_list(checkpoint, data, labels, root, seen, reduction, where)
    whole = found.to_dict()
    if json_ is not None:
        write_json(whole, json_, "the result")
    if json_ != STDOUT:
        _show(found, worst)
    if results is not None:
        write_json(whole, results, "the result")
        written = _write_tables_and_pictures(found, results)
        echo(f"Wrote {results} and {', '.join(map(str, written))}.", err=json_ == STDOUT)


def _write_tables_and_pictures(found: Evaluated, results: Path) -> list[Path]:
    """Writes the table per class of every result, and pictures of it, beside ``results``; returns their paths."""
    from alt.evaluate.result_pictures import draw_confusion, draw_per_class

    written = []
    for number, result in enumerate(found.results, 1):
        end = f"-{number}" if len(found.results) > 1 else ""
        written.append(result.save_per_class(results.with_name(f"{results.stem}{end}.csv")))
        written.append(draw_per_class(result, results.with_name(f"per-class{end}.png")))
        if result.confusion:
            written.append(draw_confusion(result, results.with_name(f"confusion{end}.png")))
    return written


def _refuse_options_of_lists(ctx: typer.Context) -> None:
    """Raises UsageError for an option that an evaluation would not read: its configuration has a setting instead."""
    settings = {"views": "evaluation.crops and evaluation.clips", "labels": "data.labels", "root": "data.root"}
    for name, setting in settings.items():
        if is_given(ctx, name):
            raise UsageError(f"--{name} goes with --data. Without it, change {setting} with --set.")


def _execute(checkpoint: Path, config: str | None, overrides: list[str], reduction: Any, where: Placement) -> Evaluated:
    """Executes the evaluation of a configuration: of that name, or of the run that the checkpoint is of."""
    from alt.evaluate.execute import execute
    from alt.train.config import load_config

    kept = (checkpoint if checkpoint.is_dir() else checkpoint.parent) / "config.yaml"
    trained = load_config(kept) if kept.is_file() else None
    if config is None and trained is None:
        raise UsageError(
            f"Name what {checkpoint} is tested on with --data or --config: there is no config.yaml of a run beside it."
        )
    chosen = load_config(kept if config is None else config, overrides)
    return execute(
        chosen,
        checkpoint,
        trained=trained,
        r=reduction,
        where=where,
        say=lambda line: logger.info("%s", line),
        warn=lambda line: logger.warning("%s", line),
    )


def _test_list(
    checkpoint: Path,
    data: Path,
    labels: Path | None,
    root: Path | None,
    views: Views,
    reduction: Any,
    where: Placement,
) -> Evaluated:
    from alt.cost import count_macs
    from alt.evaluate.checkpoint import at_r, clip_files, open_model
    from alt.evaluate.execute import Evaluated
    from alt.evaluate.run import evaluate as run
    from alt.evaluate.spread import spread

    model = open_model(checkpoint, where.device)
    dataset = clip_files(model, data, labels, str(views), root)
    if reduction is not None:
        model = at_r(model, reduction)
    logger.info("%d clips, %d classes, on %s", len(dataset), len(model.classes), where.device)
    with where.progress("clips", len(dataset)) as progress:
        result = run(
            model,
            dataset,
            batch_size=where.batch,
            workers=where.workers,
            device=where.device,
            precision=where.precision,
            progress=progress,
            checkpoint=str(checkpoint),
            data=str(data),
            r=model.config.r,
            frames=model.config.frames,
            crops=views.crops,
            clips=views.clips,
            gmacs_per_video=count_macs(model, views=views.total).native_g,
        )
    for line in dataset.describe():
        logger.warning("%s", line)
    return Evaluated("list", spread([result.top1]), (result,))


def _show(found: Evaluated, worst: int) -> None:
    """Prints every result, and above several ones their mean."""
    if found.protocol != "list":
        over = f": top-1 {found.top1} % over {len(found.results)}" if len(found.results) > 1 else ""
        echo(f"{found.protocol}{over}")
    for result in found.results:
        s = result.setting
        echo(
            f"{result.videos} videos, {len(result.per_class)} classes, {s['frames']}x{s['crops']}x{s['clips']} views, "
            f"r = {s['r']}, {s['gmacs_per_video']:.4g} GMACs per video"
        )
        echo(f"top-1 {result.top1:.2f} %   top-5 {result.top5:.2f} %")
        mean, area = result.mean_class_accuracy, result.mean_average_precision
        echo(f"mean class accuracy {mean:.2f} %   mAP {area:.2f} %" if result.confusion else f"mAP {area:.2f} %")
        known = sorted((value, name) for name, value in result.per_class.items() if value is not None)
        if worst and known:
            echo("lowest: " + ", ".join(f"{name} {value:.0f} %" for value, name in known[:worst]))
