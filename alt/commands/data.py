"""``alt data``: every clip of a list is read to its end before a run depends on it; random choices as files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alt.errors import UserError

from .options import JsonFile, Labels, Overrides, Root
from .outputs import STDOUT, check_file, check_folder, write_json
from .progress import progress_bar
from .settings import describe_settings
from .terminal import echo

data = typer.Typer(no_args_is_help=True)


@data.callback()
def _data() -> None:
    """Look at lists of clips and at the clips in them, and write what a protocol draws."""


@data.command("check")
def check(
    clips: Annotated[Path, typer.Argument(metavar="LIST", help="List of clips, one line 'path label' per clip.")],
    labels: Labels = None,
    root: Root = None,
    workers: Annotated[int, typer.Option(metavar="N", min=0, help="Processes that read clips.")] = 0,
    json_: JsonFile = None,
) -> None:
    """Decode every clip of a list, and name those that cannot be read in full.

    A run replaces such clips by others, or stops (data.damaged). If there is one, the exit status is 1.
    """
    from alt.data.check import check_clips
    from alt.data.clips import ClipFiles

    check_file(json_, "--json")
    files = ClipFiles(clips, labels, root)
    with progress_bar("clips", len(files)) as progress:
        found = list(check_clips(files.entries, workers=workers, progress=progress))
    if json_ is not None:
        rows = [{"path": str(path), "frames": frames, "problem": problem} for path, frames, problem in found]
        write_json(rows, json_, "the findings")
    damaged = [finding for finding in found if finding.problem is not None]
    if json_ != STDOUT:
        for finding in damaged:
            echo(f"{finding.path}: {finding.problem}")
    if damaged:
        raise UserError(f"{len(damaged)} of {len(found)} clips of {clips} cannot be read in full.")
    if json_ != STDOUT:
        echo(f"All {len(found)} clips of {clips} can be read: {sum(finding.frames for finding in found)} frames.")


@data.command("draw")
def draw(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A shipped configuration, or a YAML file.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for the lists.")],
    set_: Overrides = None,
) -> None:
    """Write the random choices of a configuration: the clips of its few-shot draws, or the classes of its draws.

    A list of clips is one for data.train_list, and draws of classes are one for evaluation.class_draws.
    """
    from alt.train.config import load_config

    if "help" in (set_ or []):
        for line in describe_settings(load_config(config)):
            echo(line)
        return
    from alt.evaluate.sampling_lists import write_sampling_lists

    check_folder(out, "--out")
    written = write_sampling_lists(load_config(config, set_ or []), out)
    echo(f"Wrote {', '.join(map(str, written))}.")
