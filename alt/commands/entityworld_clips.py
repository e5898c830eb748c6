"""``alt entityworld clips``: generated clips as files, for ``alt eval``, ``alt predict`` and ``alt train``."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from alt.errors import UsageError

from .options import WorldOption, WorldPreset
from .outputs import check_folder
from .terminal import echo


class Form(enum.StrEnum):
    """Files per clip: a folder of PNG pictures, or one array file."""

    frames = "frames"
    npy = "npy"
    npz = "npz"
    pt = "pt"


def clips(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder for the clips, list.txt and labels.csv.")],
    split: Annotated[
        str, typer.Option(metavar="NAME", help="Data set: seen-train, seen-test, transfer-a-1, ...")
    ] = "seen-test",
    world: WorldOption = WorldPreset.cpu,
    limit: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Write the first N clips only; classes take turns.", show_default=False),
    ] = None,
    form: Annotated[Form, typer.Option(help="A folder of PNG pictures per clip, or one array file.")] = Form.frames,
) -> None:
    """Write generated clips as files, with a list of clips and their class names.

    The clips of the default are those that 'alt train entity-world-cpu' validates on. The folder is what
    'alt eval MODEL --data FOLDER/list.txt --labels FOLDER/labels.csv' reads; each of its clips is what 'alt predict'
    reads. The same command writes the same pixels everywhere.
    """
    from alt.entityworld.world import World, write_to_disk

    generator = World(world.value)
    if split not in generator.split_names():
        raise UsageError(f"--split takes one of {', '.join(generator.split_names())}, got '{split}'.")
    check_folder(folder, "FOLDER")
    if (folder / "list.txt").exists():
        raise UsageError(f"FOLDER: '{folder}' already holds a list of clips; name another one.")
    chosen = generator.split(split)
    if limit is not None:
        chosen = chosen.subset(range(min(limit, len(chosen))))
    path = write_to_disk(generator, chosen, folder, form.value)
    echo(f"Wrote {len(chosen)} clips of {len(chosen.classes)} classes to {folder}. Next:")
    echo(f"  alt eval MODEL --data {path} --labels {path.with_name('labels.csv')}")
    first = path.read_text(encoding="utf-8").split()[0]
    echo(f"  alt predict MODEL {folder / first} --html page.html")
