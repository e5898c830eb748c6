"""The demonstration from options to pictures."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from alt.entityworld.demo.demo_tower import Tower, load_tower
from alt.entityworld.demo.photo_measurements import cpu_threads, measure, merged_regions, passes
from alt.entityworld.demo.photo_report import notes, result_table, row_record
from alt.entityworld.demo.photos import Photo, find_photos, load_photos
from alt.errors import UserError, one_line, printable
from alt.files import replacing
from alt.measure import describe_machine, is_busy
from alt.patch import patch_clip
from alt.visualize.regions import merge_sheet, region_map, shown_blocks

__all__ = ["DemoOptions", "UserError", "run_demo"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
#: Rounds of the tower, and seconds after which no further round begins: the first table appears within a minute.
REPEATS, PATIENCE = 9, 30.0


@dataclass(frozen=True)
class DemoOptions:
    """The options of ``alt demo``, as its help describes them. ``out`` is an existing folder."""

    images: Path | None = None
    model: str = "ViT-B-16-quickgelu"
    pretrained: str | None = None
    r: tuple[int, ...] = (0, 4, 8, 13, 16)
    picture_r: int = 8
    out: Path = Path("demo_output")
    precision: str = "fp32"
    repeats: int | None = None  # None: 9, or as many as PATIENCE allows, at least three
    threads: int = 1
    seed: int = 0


def run_demo(options: DemoOptions, console: Console) -> dict[str, Any]:
    """Runs the demonstration: prints to ``console``, writes to ``options.out``, returns the content of results.json.

    Raises:
        UserError: an option cannot be met. The message is one sentence.
    """
    r_values = sorted({0, *options.r})  # the others are compared with 0
    photos = load_photos(find_photos(options.images))
    started = time.perf_counter()

    with console.status(f"building {_shown(options.model)}"):
        tower = load_tower(options.model, options.pretrained, options.seed)
        _check_patchable(tower)
    console.print(f"[bold]{_shown(tower.model)}[/bold], image tower, weights: {_shown(tower.weights)}")
    if options.pretrained is None:
        console.print(
            "These are [bold]random weights[/bold] (--pretrained TAG takes real ones): tokens, GFLOPs and times are "
            "those of the real model, but the regions only follow raw colour and texture, and the cosine says nothing "
            "about accuracy."
        )

    # The pictures are drawn from the same float32 pixels that the tower gets.
    pixels = torch.stack([tower.preprocess(photo.image) for photo in photos])
    dtype = _DTYPES[options.precision]
    x = pixels.to(dtype)
    tower.visual.to(dtype)
    with cpu_threads(options.threads), _progress(console) as progress:
        repeats, patience = (REPEATS, PATIENCE) if options.repeats is None else (options.repeats, math.inf)
        task = progress.add_task("running the tower", total=passes(len(photos), r_values, repeats))
        rows = measure(tower.visual, x, r_values, repeats, lambda: progress.advance(task), patience=patience)
        machine = describe_machine()  # with the threads of the measurement
        sources, tokens = merged_regions(tower.visual, x, options.picture_r, lambda: progress.advance(task))
        drawing = progress.add_task("drawing the regions", total=len(photos))
        pictures = []
        for photo, image, source in zip(photos, pixels, sources, strict=True):
            pictures.append(_draw(photo, image, source, tokens, tower, options))
            progress.advance(drawing)

    setting = (
        f"{options.precision}, {options.threads} thread{'s' if options.threads > 1 else ''}, batches of "
        f"{min(8, len(photos))}, median of {len(rows[0].seconds)} interleaved rounds"
    )
    console.print(result_table(rows, tower.model, setting))
    for note in notes(rows, tower.model, is_busy()):
        console.print(note)
    results = {
        "model": tower.model,
        "weights": tower.weights,
        "photographs": [photo.name for photo in photos],
        "options": {key: str(v) if isinstance(v, Path) else v for key, v in asdict(options).items()},
        "machine": machine,
        "rows": [row_record(row, tower.model) for row in rows],
        "pictures": [path.name for path in pictures],
    }
    kept = options.out / "results.json"
    with replacing(kept, "the results") as partial:
        partial.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    console.print(
        f"{len(pictures)} pictures of the regions at r = {options.picture_r} and {kept.name} are in "
        f"{printable(str(options.out))} ({time.perf_counter() - started:.0f} s).",
        markup=False,
    )
    return results


def _shown(text: str) -> str:
    """Returns a name of the command line as rich prints it: neither markup nor control characters."""
    return escape(printable(text))


def _draw(
    photo: Photo, image: torch.Tensor, source: list[Any], tokens: tuple[int, ...], tower: Tower, options: DemoOptions
) -> Path:
    """Draws one sheet: the photograph and its regions after every block (12 evenly spaced blocks of deeper towers)."""
    shown = shown_blocks(len(source))
    sheet = merge_sheet(
        tower.picture(image),
        [region_map(source[block - 1], tower.grid(), num_protected=tower.num_protected()) for block in shown],
        [f"after block {block}: {tokens[block - 1]} tokens" for block in shown],
        title=f"{photo.name}: merged regions, {tower.model}, r = {options.picture_r}, weights {tower.weights}",
    )
    path = options.out / f"{photo.name}_regions.png"
    with replacing(path, "the picture") as partial:
        sheet.save(partial, "PNG")
    return path


def _check_patchable(tower: Tower) -> None:
    try:
        patch_clip(tower.visual, r=0).remove()
    except (TypeError, ValueError, NotImplementedError) as error:
        raise UserError(f"--model: alt cannot patch {tower.model}: {one_line(error)}.") from None


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)
