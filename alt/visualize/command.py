"""``alt predict``: options, and errors as one sentence. Heavy imports wait until the command runs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from .explanation import Explanation

_log = logging.getLogger(__name__)


def predict(
    checkpoint: Annotated[Path, typer.Argument(help="A model (.safetensors) or the folder of a run.")],
    clip: Annotated[Path, typer.Argument(help="A folder of frames, or an array file: .npy, .npz, .pt, .zip.")],
    top: Annotated[int, typer.Option(min=1, help="Show so many classes and entities.")] = 5,
    html: Annotated[Path | None, typer.Option(help="Write one page to look at.", show_default=False)] = None,
    pictures: Annotated[Path | None, typer.Option(help="Folder to write PNG files to.", show_default=False)] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    r: Annotated[
        str | None,
        typer.Option(help="Tokens merged in every block, any number, without retraining.", show_default=False),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(help="An entity or class to draw heat maps of, instead of the best ones; may be repeated."),
    ] = None,
    device: Annotated[str, typer.Option(help="Where it runs.")] = "cpu",
) -> None:
    """Say what a clip shows and which entities its regions were aligned to.

    Of a clip with more frames than the model reads the middle one of every segment is taken; other sizes are resized
    and cropped to the middle, as in alt eval.
    """
    try:
        from rich.console import Console

        from alt.errors import UserError, one_line
    except ModuleNotFoundError as error:
        typer.echo(
            f"Error: alt predict needs {error.name}; install it with: pip install 'alt-kernels[models]'", err=True
        )
        raise typer.Exit(1) from None
    console = Console(highlight=False, soft_wrap=True)
    try:
        explanation, written = _run(checkpoint, clip, html, pictures, r, text or None, device)
        if json_:
            import json

            typer.echo(json.dumps(explanation.to_dict(top), indent=1, ensure_ascii=False))
        else:
            _tables(console, explanation, top)
            for line in written:
                console.print(line, markup=False)
    except UserError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from None
    except ModuleNotFoundError as error:
        typer.echo(
            f"Error: alt predict needs {error.name}; install it with: pip install 'alt-kernels[models]'", err=True
        )
        raise typer.Exit(1) from None
    except (ValueError, TypeError, OSError) as error:
        typer.echo(f"Error: {one_line(error, 300)}.", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("Interrupted.", err=True)
        raise typer.Exit(130) from None


def _run(
    checkpoint: Path,
    clip: Path,
    page: Path | None,
    pictures: Path | None,
    r: str | None,
    texts: list[str] | None,
    device: str,
) -> tuple[Explanation, list[str]]:
    from alt.data.clips import read_clip
    from alt.data.sampling import make_views
    from alt.errors import UserError
    from alt.evaluate.checkpoint import at_r, open_model, parse_reduction

    from .explanation import explain
    from .heat_row import heat_rows
    from .page import write_page
    from .pictures import write_pictures

    model = open_model(checkpoint, device)
    alignment = getattr(model, "alignment", None)
    if alignment is not None and len(alignment.entities) == 0:
        raise UserError(f"{checkpoint}: the model was saved without a corpus, so there is nothing to align with.")
    if not model.classes:
        raise UserError(f"{checkpoint}: the model was saved without classes, so there is nothing to predict.")
    if r is not None:
        model = at_r(model, parse_reduction(r))
    video = read_clip(clip)
    if len(video) < model.config.frames:
        _log.warning("%s has %d of %d frames, which repeat in order", clip, len(video), model.config.frames)
    size = model.backbone.image_size[0]
    frames = make_views(video, model.config.frames, size)[0]
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


def _tables(console: Console, explanation: Explanation, top: int) -> None:
    from rich.markup import escape
    from rich.table import Table

    from .draw import category_name

    classes = Table("class", box=None, header_style="bold", pad_edge=False)
    classes.add_column("probability", justify="right")
    for score in explanation.classes[:top]:
        classes.add_row(escape(score.name), f"{100 * score.probability:.1f} %")
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
            escape(entity.unit),
            category_name(entity.category),
            f"{100 * entity.share:.1f} %",
            str(entity.tokens),
            f"{entity.similarity:.2f}",
            " ".join(map(str, there)),
        )
    console.print(entities)
    console.print()
