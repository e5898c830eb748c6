"""Commands that may not take longer than they are given, and whose output is there however they end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping

from .session import ROOT

EVERY = 20.0  # seconds between two looks at what a command has written
OUT_OF_TIME = 124


def finish(
    command: list[str],
    seconds: float,
    *,
    environment: Mapping[str, str] | None = None,
    look: Callable[[str], None] = lambda text: None,
    interrupt: bool = False,
) -> tuple[int, str]:
    """Exit status, 124 where the time was up, and all that was printed.

    The command is a process group of its own, so that what it has started (a sanitizer's program, the processes of
    pytest-xdist) ends with it and does not keep the GPU.

    Args:
        look: is given what was printed, now and then.
        interrupt: Ctrl-C first, and ten seconds to put things away.
    """
    end = time.monotonic() + max(seconds, 1)
    with tempfile.TemporaryFile() as log:

        def text() -> str:
            # By position: the command writes at this file's own place, which must not be moved.
            return os.pread(log.fileno(), os.fstat(log.fileno()).st_size, 0).decode(errors="replace")

        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, process_group=0
        )
        status = None
        try:
            while status is None and time.monotonic() < end:
                try:
                    status = process.wait(max(min(EVERY, end - time.monotonic()), 0.1))
                except subprocess.TimeoutExpired:
                    look(text())
            if status is None:
                status = OUT_OF_TIME
                if interrupt:
                    process.send_signal(signal.SIGINT)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(10)
        finally:  # also where this process is interrupted, or ``look`` fails
            with contextlib.suppress(ProcessLookupError):  # also what a command that ended has left behind
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return status, text()
