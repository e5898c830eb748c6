"""``alt demo``: options, and errors as one sentence. Heavy imports wait until the command runs."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer


class Precision(enum.StrEnum):
    fp32 = "fp32"
    bf16 = "bf16"


def demo(
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of photographs; without it five that come with scikit-image.", show_default=False),
    ] = None,
    model: Annotated[str, typer.Option(help="Image tower, by open_clip's name.")] = "ViT-B-16-quickgelu",
    pretrained: Annotated[
        str | None,
        typer.Option(
            metavar="TAG",
            help="open_clip's tag of pretrained weights, or a file of weights; without it the weights are random.",
            show_default=False,
        ),
    ] = None,
    r: Annotated[str, typer.Option(metavar="LIST", help="Tokens merged in every block.")] = "0,4,8,13,16",
    picture_r: Annotated[int, typer.Option(min=1, help="The r of the pictures of merged regions.")] = 8,
    out: Annotated[Path, typer.Option(help="Folder for the pictures and results.json.")] = Path("demo_output"),
    precision: Annotated[Precision, typer.Option(help="Precision of weights and activations.")] = Precision.fp32,
    repeats: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Timed rounds of every r. Without it 9, or as many as half a minute holds, but at least 3.",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads; with one the times are steadiest.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random weights.")] = 0,
    tradeoff: Annotated[bool, typer.Option(help="Also train the small ALT video model for every r.")] = True,
    tradeoff_seeds: Annotated[int, typer.Option(min=1, help="Trainings of the small ALT at every r.")] = 1,
    tradeoff_steps: Annotated[int, typer.Option(min=1, help="Steps of each of them.")] = 400,
) -> None:
    """Patch a CLIP image tower with token merging and show what it saves, on photographs; then train the small ALT.

    Prints one row for every r: tokens left, GFLOPs of 8 frames, milliseconds for an image, and how close the embedding
    stays to that of the untouched tower. Writes a picture of the merged regions for every photograph. After that the
    video model of the embedded benchmark is trained at every r: accuracy against cost, as a table and as a plot. One
    training per r shows how it goes; `alt tradeoff` trains with five seeds, and longer.
    """
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        from alt.entityworld.demo.photo_demo import DemoError, DemoOptions, run_demo
    except ModuleNotFoundError as error:
        errors.print(f"Error: alt demo needs {error.name}; install it with: pip install 'alt-kernels\\[models]'")
        raise typer.Exit(2) from None
    try:
        options = DemoOptions(
            images=images,
            model=model,
            pretrained=pretrained,
            r=r,
            picture_r=picture_r,
            out=out,
            precision=precision.value,
            repeats=repeats,
            threads=threads,
            seed=seed,
        )
        run_demo(options, console)
        if tradeoff:
            from alt.entityworld.demo.demo_tradeoff import run_tradeoff

            run_tradeoff(out, console, seeds=tradeoff_seeds, steps=tradeoff_steps, threads=threads)
    except DemoError as error:
        errors.print(f"[red]Error:[/red] {escape(str(error))}")
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        errors.print("Interrupted.")
        raise typer.Exit(130) from None
