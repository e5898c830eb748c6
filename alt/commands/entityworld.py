"""``alt entityworld``: clips of the generated world as files. Its comparison is ``alt compare``."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from .compare import compare
from .entityworld_clips import clips
from .logs import logger


class _CompareByDefault(TyperGroup):
    """``alt entityworld --seeds 3`` and ``alt entityworld compare --seeds 3``, the names of before, for one release."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or args[0] not in {*self.commands, "-h", "--help"}:
            args = ["compare", *args] if not args or args[0] != "compare" else args
        return super().parse_args(ctx, args)

    def get_command(self, ctx: Any, name: str) -> Any:
        if name != "compare":
            return super().get_command(ctx, name)
        logger.warning("alt entityworld compare is deprecated; write alt compare")
        old = typer.Typer(add_completion=False)
        old.command(name)(compare)
        return typer.main.get_command(old)


entityworld = typer.Typer(cls=_CompareByDefault)


@entityworld.callback()
def _entityworld() -> None:
    """Write clips of the generated world as files. Without a command: the same as alt compare."""


entityworld.command("clips")(clips)
