"""``alt predict``: explains one clip as tables, JSON, pictures or one page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from alt.errors import UserError, printable

from .logs import logger
from .options import Device, HtmlFile, JsonFile, PictureFolder, Reduction, parse_device, parse_reduction
from .outputs import STDOUT, check_file, check_folder, write_json
from .terminal import echo

if TYPE_CHECKING:
    from alt.visualize.explanation import Explanation


class BareJson(TyperCommand):
    """Reads ``--json`` without a file, which was a flag here before, as ``--json -``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        args = list(args)
        for place, (word, following) in enumerate(zip(args, [*args[1:], "--"], strict=True)):
            if word == "--json" and following.startswith("--"):
                # At the end, so that an error's line comes first.
                ctx.find_root().call_on_close(
                    lambda: logger.warning("--json without a file is deprecated; write --json -")
                )
                args.insert(place + 1, str(STDOUT))
                break
        return super().parse_args(ctx, args)


def predict(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A model (.safetensors), or the folder of a run that ended.")
    ],
    clip: Annotated[Path, typer.Argument(help="A folder of frames, or an array file: .npy, .npz, .pt, .zip.")],
    top: Annotated[int, typer.Option(metavar="N", min=1, help="Number of classes and entities to show.")] = 5,
    html: HtmlFile = None,
    pictures: PictureFolder = None,
    json_: JsonFile = None,
    r: Reduction = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Draw heat maps of this entity or class instead of the best ones; may be repeated."
        ),
    ] = None,
    device: Device = "auto",
) -> None:
    """Say what a clip shows and which entities its regions were aligned to.

    If a clip has more frames than the model reads, the middle one of each segment is taken; other sizes are resized
    and cropped to the middle, as in alt eval.
    """
    reduction = None if r is None else parse_reduction(r)
    place = parse_device(device)
    check_file(html, "--html")
    check_file(json_, "--json")
    if pictures is not None:
        check_folder(pictures, "--pictures")
    explanation, written = _run(checkpoint, clip, html, pictures, reduction, text or None, place)
    if json_ is not None:
        write_json(explanation.to_dict(top), json_, "the explanation")
    if json_ != STDOUT:
        _print_tables(explanation, top)
    for line in written:
        echo(line, err=json_ == STDOUT)


def _run(
    checkpoint: Path,
    clip: Path,
    page: Path | None,
    pictures: Path | None,
    r: int | float | tuple[int, ...] | None,
    texts: list[str] | None,
    device: str,
) -> tuple[Explanation, list[str]]:
    from alt.data.clips import open_video
    from alt.data.sampling import make_views
    from alt.evaluate.checkpoint import at_r, open_model
    from alt.visualize.explanation import explain
    from alt.visualize.heat_row import heat_rows
    from alt.visualize.page import write_page
    from alt.visualize.pictures import write_pictures

    model = open_model(checkpoint, device)
    alignment = getattr(model, "alignment", None)
    if alignment is not None and len(alignment.entities) == 0:
        raise UserError(f"{checkpoint}: the model was saved without a corpus, so there is nothing to align with.")
    if not model.classes:
        raise UserError(f"{checkpoint}: the model was saved without classes, so there is nothing to predict.")
    if r is not None:
        model = at_r(model, r)
    size = model.backbone.image_size[0]
    with open_video(clip) as video:
        frames = make_views(video, model.config.frames, size)[0]  # first: a clip that cannot be read has no frames
        if video.frames < model.config.frames:
            logger.warning("%s has %d of %d frames, which repeat in order", clip, video.frames, model.config.frames)
    explanation = explain(model, frames)
    written: list[str] = []
    if page is None and pictures is None:
        return explanation, written
    rows = heat_rows(model, frames, explanation, texts)
    if page is not None:
        write_page(page, explanation, rows, note=f"Clip: {clip.name}. Model: {checkpoint.name}.")
        written.append(f"Wrote {page}.")
    if pictures is not None:
        count = len(write_pictures(pictures, explanation, rows))
        written.append(f"Wrote {count} pictures to {pictures}.")
    return explanation, written


def _print_tables(explanation: Explanation, top: int) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from alt.visualize.draw import category_name

    console = Console(highlight=False, soft_wrap=True)
    classes = Table("class", box=None, header_style="bold", pad_edge=False)
    classes.add_column("probability", justify="right")
    for score in explanation.classes[:top]:
        classes.add_row(escape(printable(score.name)), f"{100 * score.probability:.1f} %")
    console.print(classes)
    console.print()
    if not explanation.aligned:
        console.print("This model aligns no regions to entities.")
        return
    entities = Table("entity", "category", box=None, header_style="bold", pad_edge=False)
    for name in ("share", "tokens", "cosine"):
        entities.add_column(name, justify="right")
    entities.add_column("frames")
    for entity in explanation.entities[:top]:
        there = [t + 1 for t, frame in enumerate(explanation.frames) if entity.number in {e.number for e in frame}]
        entities.add_row(
            escape(printable(entity.unit)),
            escape(printable(category_name(entity.category))),
            f"{100 * entity.share:.1f} %",
            str(entity.tokens),
            f"{entity.similarity:.2f}",
            " ".join(map(str, there)),
        )
    console.print(entities)
    console.print()
