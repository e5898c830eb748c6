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
        str,
        typer.Argument(
            metavar="MODEL",
            help="open_clip:NAME, hf:PATH (a folder or a name on the Hub), or open_clip:mini, which ships.",
        ),
    ],
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="One folder of pictures per class, or pictures with captions.")
    ],
    captions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Captions of the pictures in FOLDER: CSV, TSV, JSON lines or COCO's JSON. Without it, a captions.csv "
            "or the like in FOLDER, or .txt and .json files beside the pictures.",
            show_default=False,
        ),
    ] = None,
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
    model's prompt templates are the classifier. With captions, it is recall from image to text and from text to image.
    """
    import torch

    from alt.data.captions import find_captions, read_captions
    from alt.data.video import ClipError
    from alt.evaluate.zero_shot import list_pictures, measure_zero_shot, table, write
    from alt.models.clip import build_clip

    chosen = parse_sweep_or_r(sweep, r, "0,4,8,13")
    package, _, name = model.partition(":")
    if package not in ("open_clip", "hf") or not name:
        reason = f": {_pair_with_text(name)}" if package == "timm" else ""
        raise UsageError(f"MODEL takes open_clip:NAME or hf:PATH, got '{model}'{reason}.")
    place = parse_device(device)
    check_folder(out, "--out")
    torch.set_num_threads(threads)
    try:
        found = find_captions(folder) if captions is None else read_captions(captions, folder)
        pictures = list_pictures(folder) if found is None else found
        loaded = build_clip(name if package == "open_clip" else model, pretrained)
        rows = measure_zero_shot(loaded, pictures, chosen, device=place, say=say)
    except (ClipError, TypeError, ValueError) as error:
        raise UserError(f"{error}.") from None
    files = write(rows, pictures, out)
    echo(table(rows))
    echo(f"Wrote {', '.join(path.name for path in files)} to {out}.")


def _pair_with_text(name: str) -> str:
    """Returns why a tower of timm is no MODEL, and the CLIPs of open_clip on this tower."""
    import open_clip

    reason = "timm's models have no text tower"
    towers = {
        clip: open_clip.get_model_config(clip)["vision_cfg"].get("timm_model_name") for clip in open_clip.list_models()
    }
    pairs = [f"open_clip:{clip}" for clip, tower in towers.items() if tower == name.split(".")[0]]
    return f"{reason}, but open_clip has one for it: {', '.join(pairs)}" if pairs else reason
