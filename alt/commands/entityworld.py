"""``alt entityworld``: the comparison on generated video, and its clips as files."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from .entityworld_clips import clips
from .entityworld_compare import compare


class _CompareByDefault(TyperGroup):
    """``alt entityworld --seeds 3`` is ``alt entityworld compare --seeds 3``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or args[0] not in {*self.commands, "-h", "--help"}:
            args = ["compare", *args]
        return super().parse_args(ctx, args)


entityworld = typer.Typer(cls=_CompareByDefault)


@entityworld.callback()
def _entityworld() -> None:
    """Compare methods on procedurally generated video (the default: compare), or write its clips as files."""


entityworld.command("compare")(compare)
entityworld.command("clips")(clips)
