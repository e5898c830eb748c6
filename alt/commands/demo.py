"""``alt demo``: the effect of merging on a CLIP image tower with photographs, and on the small ALT."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import OldSweep, Precision, Sweep, Threads, parse_sweep_or_r
from .outputs import check_folder

DEFAULT_SWEEP = "0,4,8,13,16"


def demo(
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder of photographs. Without it, five that come with scikit-image.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str, typer.Option(metavar="NAME", help="Image tower, by open_clip's name.")
    ] = "ViT-B-16-quickgelu",
    pretrained: Annotated[
        str | None,
        typer.Option(
            metavar="TAG",
            help="open_clip's tag of pretrained weights, or a file of weights. Without it, the weights are random.",
            show_default=False,
        ),
    ] = None,
    sweep: Sweep = DEFAULT_SWEEP,
    picture_r: Annotated[
        int, typer.Option(metavar="N", min=1, help="Tokens merged per block in the pictures of merged regions.")
    ] = 8,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for the pictures and results.json.")] = Path(
        "demo_output"
    ),
    precision: Annotated[Precision, typer.Option(help="Precision of weights and activations.")] = Precision.fp32,
    repeats: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Timed rounds of every r. Without it, 9, or as many as half a minute holds, but at least 3.",
            show_default=False,
        ),
    ] = None,
    threads: Threads = 1,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of the random weights.")] = 0,
    tradeoff: Annotated[bool, typer.Option(help="Train the small ALT video model for every r as well.")] = True,
    tradeoff_seeds: Annotated[int, typer.Option(metavar="N", min=1, help="Trainings of the small ALT per r.")] = 1,
    tradeoff_steps: Annotated[int, typer.Option(metavar="N", min=1, help="Steps per training.")] = 400,
    r: OldSweep = None,
) -> None:
    """Patch a CLIP image tower with token merging, show what it saves on photographs, then train the small ALT.

    Prints one row per r: tokens left, GFLOPs of 8 frames, milliseconds per image, and the similarity of the embedding
    to that of the untouched tower. Writes one picture of the merged regions per photograph. Then it trains the small
    video model on EntityWorld at every r and shows accuracy against cost, as a table and as a plot. One training per r
    gives a first impression; 'alt tradeoff' trains longer, with five seeds.
    """
    from rich.console import Console

    from alt.entityworld.demo.photo_demo import DemoOptions, run_demo

    console = Console(highlight=False)
    options = DemoOptions(
        images=images,
        model=model,
        pretrained=pretrained,
        r=tuple(parse_sweep_or_r(sweep, r, DEFAULT_SWEEP)),
        picture_r=picture_r,
        out=out,
        precision=precision.value,
        repeats=repeats,
        threads=threads,
        seed=seed,
    )
    check_folder(out, "--out")
    run_demo(options, console)
    if tradeoff:
        from alt.entityworld.demo.demo_tradeoff import run_tradeoff

        run_tradeoff(out, console, seeds=tradeoff_seeds, steps=tradeoff_steps, threads=threads)
