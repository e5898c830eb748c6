"""``alt train``: a run from a configuration."""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from alt.errors import UsageError

from .options import Device, Overrides, is_given, parse_accelerator
from .settings import complete_setting, describe_settings
from .terminal import echo


def train(
    ctx: typer.Context,
    config: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG", help="A YAML file, or the name of a shipped configuration.", show_default=False
        ),
    ] = "",
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Settings to change, as with --set.",
            show_default=False,
            autocompletion=complete_setting,
        ),
    ] = None,
    set_: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder of the run. Without it, runs/<name>.", show_default=False),
    ] = None,
    device: Device = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the folder's last checkpoint.")] = False,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Run two steps of this configuration on a small model and generated clips.")
    ] = False,
    list_: Annotated[bool, typer.Option("--list", help="Show the shipped configurations and stop.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Print the whole configuration as YAML and stop.")] = False,
) -> None:
    """Train a video model from a configuration.

    The folder of the run gets the configuration, the last checkpoint, metrics.csv and in the end model.safetensors. A
    run that was killed goes on with --resume and ends with the same weights; Ctrl-C leaves the last checkpoint, SIGTERM
    writes one more. Without --device the configuration says where it runs (trainer.accelerator); trainer.devices is the
    number of devices, and torchrun starts it on one or many machines.
    """
    if list_:
        _list()
        return
    changes = [*(set_ or []), *(overrides or [])]
    wants_help = "help" in changes
    if "=" in config or not (config or wants_help):
        raise UsageError("Name a configuration: a YAML file or one of those that 'alt train --list' shows.")
    from alt.train.config import TrainConfig, load_config

    changes = [change for change in changes if change != "help"]
    if is_given(ctx, "device"):
        changes.append(f"trainer.accelerator={parse_accelerator(device)}")
    chosen = TrainConfig()
    if config:
        chosen = load_config(config, changes)
    if wants_help:
        for line in describe_settings(chosen):
            echo(line)
        return
    replaced: list[str] = []
    if smoke:
        from alt.train.smoke import shrink

        chosen, replaced = shrink(chosen)
    if show:
        echo(chosen.to_yaml(), nl=False)
        return
    if smoke:
        echo("Smoke run: two steps on the small model and generated clips; replaced for it:")
        for line in replaced:
            echo(f"  {line}")
    from alt.train.run import fit

    try:
        with tempfile.TemporaryDirectory(prefix="alt-smoke-") if smoke and out is None else nullcontext(out) as folder:
            fit(chosen, folder, resume=resume, say=echo)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("Interrupted; go on from the last checkpoint with --resume.") from None


def _list() -> None:
    from alt.train.catalogue import names
    from alt.train.config import load_config

    for name in names():
        echo(f"{name:<32} {load_config(name).about}")
