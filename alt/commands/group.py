"""The group behind ``alt``: every error of every command becomes one sentence and one exit status."""

from __future__ import annotations

import contextlib
import errno
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import typer
from typer.core import TyperGroup

from alt.errors import Terminated, UsageError, UserError, one_line

from .logs import log_to_stderr, logger
from .terminal import echo

INPUT, USAGE, INTERRUPTED = 1, 2, 130


class AltGroup(TyperGroup):
    """Runs a command and ends with exit status 0, 1 (input), 2 (usage), 130 (Ctrl-C) or 143 (SIGTERM).

    Every error is one line on stderr that begins with "Error:". ``alt -vv`` also logs the traceback.
    """

    def main(self, *args: Any, **extra: Any) -> Any:
        alone = extra.pop("standalone_mode", True)
        extra["standalone_mode"] = False
        with log_to_stderr(), _terminable():
            if not alone:
                return super().main(*args, **extra)
            try:
                status = super().main(*args, **extra)
            except Exception as error:
                raise SystemExit(_report_usage(error)) from None
            raise SystemExit(status if isinstance(status, int) else 0)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            _say_error(str(error))
            raise typer.Exit(USAGE if isinstance(error, UsageError) else INPUT) from None
        except ModuleNotFoundError as error:
            if (error.name or "alt").partition(".")[0] in ("alt", "alt_kernels"):  # a mistake of ours
                raise
            _say_error(
                f"alt {ctx.invoked_subcommand} needs {error.name}; install it with: pip install 'alt-kernels[models]'"
            )
            raise typer.Exit(INPUT) from None
        except (ValueError, TypeError, OSError) as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:  # the reader of our output went away
                raise
            _say_error(f"{one_line(error, 300)}.")
            raise typer.Exit(INPUT) from None
        except Terminated as stop:
            echo(stop.message, err=True)
            raise typer.Exit(Terminated.STATUS) from None
        except KeyboardInterrupt as stop:
            echo(str(stop) or "Interrupted.", err=True)
            raise typer.Exit(INTERRUPTED) from None


def _say_error(sentence: str) -> None:
    logger.debug("traceback", exc_info=True)
    echo(f"Error: {sentence}", err=True)


def _report_usage(error: Exception) -> int:
    """Shows an error of typer's own parser and returns the exit status. Other errors are raised again."""
    tell = getattr(error, "format_message", None)
    if tell is None:
        raise error
    if type(error).__name__ == "NoArgsIsHelpError":  # ``alt`` alone: its message is the whole help text
        echo(tell(), err=True)
        return USAGE
    context = getattr(error, "ctx", None)
    path = "alt" if context is None else context.command_path
    echo(f"Error: {tell().strip().rstrip('.')}. See '{path} --help'.", err=True)
    return int(getattr(error, "exit_code", USAGE))


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Raises :class:`~alt.errors.Terminated` on SIGTERM, so half-written files are removed and the status is 143."""
    here = threading.current_thread() is threading.main_thread()
    if not here or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:  # another handler is installed
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated("Terminated.")

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
