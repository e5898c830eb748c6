"""The processes that `make gpu` starts: none outlives its time, its section or whoever looks at it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from gpu import calls, processes

ROOT = Path(__file__).resolve().parents[1]


def test_a_command_out_of_time_is_interrupted_and_leaves_nobody_behind(tmp_path: Path) -> None:
    """Neither the processes that it started, which would keep the GPU: each writes on as long as it lives."""
    beat = tmp_path / "beat"
    child = f"import time\nwhile True: open({str(beat)!r}, 'a').write('x'); time.sleep(0.05)"
    parent = f"import subprocess, sys; print('started', flush=True); subprocess.run([sys.executable, '-c', {child!r}])"
    begin, seen = time.monotonic(), []
    processes.EVERY, every = 0.5, processes.EVERY
    try:
        status, text = processes.finish([sys.executable, "-c", parent], 4, look=seen.append, interrupt=True)
    finally:
        processes.EVERY = every
    assert status == 124
    assert time.monotonic() - begin < 30
    assert text.startswith("started")
    assert any("started" in what for what in seen)
    assert beat.exists(), "the child never ran"
    time.sleep(0.3)
    size = beat.stat().st_size
    time.sleep(0.5)
    assert beat.stat().st_size == size, "the child is still running"
    assert processes.finish([sys.executable, "-c", "raise SystemExit(7)"], 30)[0] == 7


def test_nobody_is_left_behind_by_a_section_that_is_ended(tmp_path: Path) -> None:
    """What a section has started is a process group of its own: the section ends it, and says that its time was up."""
    beat = tmp_path / "beat"
    child = f"import time\nwhile True: open({str(beat)!r}, 'a').write('x'); time.sleep(0.05)"
    section = f"""
import sys
from gpu import __main__ as entry, processes
entry.run = lambda *_: processes.finish([sys.executable, "-c", {child!r}], 60)
entry.main(["test", "--device", "cpu"])
"""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'benchmarks'}"}
    process = subprocess.Popen([sys.executable, "-c", section], env=environment)
    deadline = time.monotonic() + 60
    while not beat.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    calls.end(process)
    assert process.returncode == 124
    size = beat.stat().st_size
    time.sleep(0.5)
    assert beat.stat().st_size == size, "the child is still running"


def test_a_command_ends_with_whoever_looks_at_it(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    def look(text: str) -> None:
        started.extend(map(int, text.split()))
        assert not started

    monkeypatch.setattr(processes, "EVERY", 0.5)
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    with pytest.raises(AssertionError):
        processes.finish([sys.executable, "-c", code], 30, look=look)
    with pytest.raises(ProcessLookupError):
        os.kill(started[0], 0)
