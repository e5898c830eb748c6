"""The command line: ``alt demo`` and, as they come, the commands of the other rooms.

Commands live with what they run; here they are only put together. Nothing heavy is imported before a command runs,
so ``alt --help`` answers at once.
"""

from __future__ import annotations

import importlib.metadata
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import typer


def build_app() -> typer.Typer:
    """The typer application behind ``alt``."""
    import typer

    from alt.entityworld.demo.demo_command import demo
    from alt.entityworld.method_grid_command import entityworld
    from alt.entityworld.tradeoff_command import tradeoff
    from alt.evaluate.command import cost, evaluate
    from alt.train.command import train
    from alt.visualize.command import predict

    app = typer.Typer(
        name="alt",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    def show_version(wanted: bool) -> None:
        if wanted:
            typer.echo(importlib.metadata.version("alt-kernels"))
            raise typer.Exit

    @app.callback()
    def alt(
        version: bool = typer.Option(
            False, "--version", callback=show_version, is_eager=True, help="Print the version and stop."
        ),
    ) -> None:
        """Token merging for CLIP and other vision transformers."""

    app.command("demo")(demo)
    app.command("train")(train)
    app.command("eval")(evaluate)
    app.command("predict")(predict)
    app.command("tradeoff")(tradeoff)
    app.command("entityworld")(entityworld)
    app.command("cost")(cost)
    return app


def main() -> None:
    """Entry point of the ``alt`` script."""
    try:
        app = build_app()
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich", "click"):
            raise
        sys.exit(f"alt: the command line needs {error.name}; install it with: pip install 'alt-kernels[models]'")
    app()


if __name__ == "__main__":
    main()
