"""``alt train``: options, and errors as one sentence. Heavy imports wait until the command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def train(
    config: Annotated[
        str, typer.Argument(help="A YAML file, or the name of a shipped configuration.", show_default=False)
    ] = "",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one setting, for example optim.lr=1e-5; repeatable."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; without it runs/<name>.", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the folder's last checkpoint.")] = False,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Two steps of this configuration on a small model and generated clips.")
    ] = False,
    list_: Annotated[bool, typer.Option("--list", help="Show the shipped configurations and stop.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Print the whole configuration as YAML and stop.")] = False,
) -> None:
    """Train a video model from a configuration.

    The folder of the run gets the configuration, the last checkpoint, metrics.csv and in the end model.safetensors. A
    run that was killed goes on with --resume and ends with the same weights. Several processes: by trainer.devices, or
    started by torchrun, on one or many machines.
    """
    from alt.errors import UserError

    try:
        if list_:
            _list()
            return
        if not config:
            raise UserError("Name a configuration: a YAML file or one of those that 'alt train --list' shows.")
        from alt.train.config import load_config
        from alt.train.config import smoke as shrink

        chosen = load_config(config, set_ or [])
        replaced: list[str] = []
        if smoke:
            chosen, replaced = shrink(chosen)
        if show:
            typer.echo(chosen.to_yaml(), nl=False)
            return
        _train(chosen, out, resume, smoke, replaced)
    except UserError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from None
    except ModuleNotFoundError as error:
        typer.echo(f"Error: alt train needs {error.name}; install it with: pip install 'alt-kernels[models]'", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("Interrupted; go on from the last checkpoint with --resume.", err=True)
        raise typer.Exit(130) from None


def _train(config: Any, out: Path | None, resume: bool, smoke: bool, replaced: list[str]) -> None:
    from alt.train.run import fit

    if not smoke:
        fit(config, out, resume=resume)
        return
    import tempfile

    typer.echo("Smoke run: two steps on the small model and generated clips; replaced for it:")
    for line in replaced:
        typer.echo(f"  {line}")
    if out is not None:
        fit(config, out, resume=resume)
        return
    with tempfile.TemporaryDirectory(prefix="alt-smoke-") as folder:
        fit(config, folder)


def _list() -> None:
    from alt.train.catalogue import names
    from alt.train.config import load_config

    for name in names():
        typer.echo(f"{name:<32} {load_config(name).about}")
