"""Progress of a command, on the error stream."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from .logs import logger


@contextlib.contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[[int, int], None]]:
    """Yields a function of (done, total) that moves a bar; without a terminal ``alt -v`` logs ten lines instead."""
    if not sys.stderr.isatty():
        told = 0

        def log(done: int, in_all: int) -> None:
            nonlocal told
            if 10 * done // in_all > told:
                told = 10 * done // in_all
                logger.info("%d of %d %s", done, in_all, what)

        yield log
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done, in_all: bar.update(task, completed=done, total=in_all)
