"""The command line ``alt``: puts the commands of ``alt.commands`` together.

Nothing heavy is imported before a command runs, so ``alt --help`` answers at once.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import typer


def build_app() -> typer.Typer:
    """Returns the typer application behind ``alt``."""
    import typer

    from alt.commands.bags import bags
    from alt.commands.compare import compare
    from alt.commands.corpus import corpus
    from alt.commands.cost import cost
    from alt.commands.data import data
    from alt.commands.demo import demo
    from alt.commands.entityworld import entityworld
    from alt.commands.evaluate import evaluate
    from alt.commands.group import AltGroup
    from alt.commands.heatmaps import heatmaps
    from alt.commands.logs import set_verbosity
    from alt.commands.predict import BareJson, predict
    from alt.commands.table import table
    from alt.commands.tradeoff import tradeoff
    from alt.commands.train import train
    from alt.commands.version import show_version
    from alt.commands.zeroshot import zeroshot

    app = typer.Typer(
        name="alt",
        cls=AltGroup,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def alt(
        version: bool = typer.Option(
            False,
            "--version",
            callback=show_version,
            is_eager=True,
            help="Print the versions of alt-kernels and what it runs on, and stop. For bug reports.",
        ),
        verbose: int = typer.Option(
            0, "--verbose", "-v", count=True, help="Log what is being done; -vv also shows tracebacks of errors."
        ),
    ) -> None:
        """Token merging for CLIP and other vision transformers."""
        set_verbosity(verbose)

    app.command("demo")(demo)
    app.command("train")(train)
    app.command("eval")(evaluate)
    app.command("predict", cls=BareJson)(predict)
    app.command("heatmaps")(heatmaps)
    app.command("table")(table)
    app.command("zeroshot")(zeroshot)
    app.command("tradeoff")(tradeoff)
    app.command("compare")(compare)
    app.add_typer(data, name="data")
    app.add_typer(entityworld, name="entityworld")
    app.add_typer(corpus, name="corpus")
    app.command("bags")(bags)
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
