"""`alt train` with two loading processes, killed and terminated at random moments: it ends with the same weights."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from . import jobs

MOMENTS = 20
CHANGES = [*jobs.BASE, "trainer.accumulate=2", "data.workers=2", "trainer.threads=1", "trainer.accelerator=cpu"]
WEIGHTS = "model.safetensors"
# A scheduler signals one process or, like SLURM and systemd, all of them: loading processes too.
KINDS = [(signal.SIGKILL, False), (signal.SIGTERM, False), (signal.SIGTERM, True), (signal.SIGUSR1, True)]


def command(*arguments: str) -> int:
    """Runs ``alt`` in a process group of its own; its exit status."""
    from alt.cli import build_app

    os.setpgid(0, 0)
    try:
        build_app()(list(arguments))
    except SystemExit as stop:
        return int(stop.code or 0)
    raise AssertionError("the command returned")


def started(folder: Path) -> Any:
    return jobs.start(command, "train", "entity-world-cpu", "--out", str(folder), "--resume", *CHANGES)


def signalled(run: Any, number: int, group: bool) -> int | None:
    """The exit status of a run that gets a signal now; None where the signal ended its process."""
    pid = run[0].pid
    with contextlib.suppress(ProcessLookupError):
        (os.killpg if group and os.getpgid(pid) == pid else os.kill)(pid, number)
    try:
        return jobs.finish(run)
    except jobs.Killed:
        return None


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path) -> None:
    """Also while it starts, validates, saves and writes weights. Before the first step a signal may end it at once."""
    jobs.finish(started(tmp_path / "first"))  # the fork server's imports
    began = time.monotonic()
    assert jobs.finish(started(tmp_path / "whole")) == 0
    length = time.monotonic() - began
    expected = (tmp_path / "whole" / WEIGHTS).read_bytes()
    moments, statuses = random.Random(11), []
    folder = tmp_path / "run0"
    for attempt in range(1, 100):
        run, number_and_group = started(folder), KINDS[len(statuses) % len(KINDS)]
        if len(statuses) < MOMENTS:
            time.sleep(moments.uniform(0, length))
            status = signalled(run, *number_and_group)
        else:
            status = jobs.finish(run)
        if status != 0:
            assert status in ((None,) if number_and_group[0] == signal.SIGKILL else (None, 143)), statuses
            statuses.append(status)
            continue
        assert (folder / WEIGHTS).read_bytes() == expected, statuses
        assert jobs.same(jobs.parameters(folder), jobs.parameters(tmp_path / "whole"))
        if len(statuses) == MOMENTS:
            break
        folder = tmp_path / f"run{attempt}"
    print("exit statuses:", statuses)
    assert len(statuses) == MOMENTS
