"""``alt zeroshot``: zero-shot accuracy on a folder of pictures, with cost and speed, as r grows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alt.errors import UsageError, UserError

from .options import Device, OldSweep, Sweep, Threads, parse_device, parse_sweep_or_r
from .outputs import check_folder
from .terminal import echo, say


def zeroshot(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="open_clip:NAME, or open_clip:mini, the small CLIP that ships.")
    ],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="One folder of pictures per class.")],
    pretrained: Annotated[
        str | None,
        typer.Option(
            metavar="TAG",
            help="open_clip's tag of pretrained weights, or a file of weights. Without it, the weights are random.",
            show_default=False,
        ),
    ] = None,
    sweep: Sweep = "0,4,8,13",
    device: Device = "auto",
    threads: Threads = 1,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for zeroshot.json, .md and .svg.")] = Path(
        "zeroshot_output"
    ),
    r: OldSweep = None,
) -> None:
    """Measure zero-shot accuracy, multiply-accumulates and images per second of a CLIP at every r, and plot them.

    FOLDER has one folder per class, whose name is the class name, with _ for a space. No training: class names in the
    model's prompt templates are the classifier.
    """
    import torch

    from alt.data.video import ClipError
    from alt.evaluate.zero_shot import list_pictures, measure_zero_shot, table, write
    from alt.models.clip import build_clip

    chosen = parse_sweep_or_r(sweep, r, "0,4,8,13")
    package, _, name = model.partition(":")
    if package != "open_clip" or not name:
        reason = ": timm's models have no text tower" if package == "timm" else ""
        raise UsageError(f"MODEL takes open_clip:NAME, got '{model}'{reason}.")
    place = parse_device(device)
    check_folder(out, "--out")
    torch.set_num_threads(threads)
    try:
        pictures = list_pictures(folder)
        loaded = build_clip(name, pretrained)
        rows = measure_zero_shot(loaded, pictures, chosen, device=place, say=say)
    except (ClipError, TypeError, ValueError) as error:
        raise UserError(f"{error}.") from None
    files = write(rows, pictures, out)
    echo(table(rows))
    echo(f"Wrote {', '.join(path.name for path in files)} to {out}.")
